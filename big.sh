# big.sh: quick large-file comparison
D=/work/scratch/encssh-data; B=/work/wt/target-encssh/release
mkdir -p /dev/shm/encssh/srv $D/sm
one() { # name
  for op in write read; do
    if [ $1 = ours ]; then $B/umfusessh bench:/dev/shm/encssh/srv $D/sm -o ssh_configfile=$D/ssh/ssh_config$OPT 2>&1; else sshfs -F $D/ssh/ssh_config bench:/dev/shm/encssh/srv $D/sm; fi
    s=$(date +%s.%N)
    if [ $op = write ]; then dd if=$D/rand512 of=$D/sm/big bs=1M count=${N:-512} conv=fsync status=none; else dd if=$D/sm/big of=/dev/null bs=1M status=none; fi
    e=$(date +%s.%N)
    echo "$1 $op $(echo $e $s | awk '{printf "%.2f", $1-$2}')"
    [ "$PROF" ] && [ $op = $PROF ] && top -b -n1 -H | head -20
    umount $D/sm; sleep 0.3
  done
}
cat $D/rand512 >/dev/null
for r in 1 2; do one sshfs; one ours; done
rm -rf /dev/shm/encssh
