"""sample: what the bundled sample holds, as trees like those of trees.py.

`board` is the root of a small single-board computer, `store` its data
partition, `boot` its boot partition, `disc` the ISO 9660 image on `store`.
"""

import struct
import zlib

import trees
from trees import KiB, MiB

DAY = 86_400


def board(tree):
    for path in ('/etc', '/home', '/usr', '/usr/bin', '/usr/share', '/usr/share/doc', '/usr/share/doc/sample', '/var',
                 '/var/log', '/var/lib', '/dev', '/boot', '/data', '/run'):
        tree.dir(path)
    tree.dir('/tmp', 0o1777)
    tree.dir('/root', 0o700)
    tree.link('/bin', 'usr/bin')
    tree.file('/README', README)
    for path, text in ETC.items():
        tree.file('/etc/' + path, text, 0o640 if path == 'shadow' else 0o644)
    tree.link('/etc/mtab', '../proc/self/mounts')
    tree.link('/etc/localtime', '/usr/share/zoneinfo/Europe/Rome')
    tree.file('/usr/bin/hello', HELLO, 0o755)
    tree.hard('/usr/bin/ciao', '/usr/bin/hello')
    tree.file('/usr/bin/ping', HELLO.replace('Hello', 'Pong'), 0o755,
              xattrs={'security.capability': struct.pack('<5I', 0x0200_0001, 1 << 13, 0, 0, 0)})
    for path, text in DOC.items():
        tree.file('/usr/share/doc/sample/' + path, text)
    tree.dir('/home/ada', 0o750, uid=1000, gid=1000)
    tree.dir('/home/bruno', 0o750, uid=1001, gid=1001)
    tree.file('/home/ada/letter.txt', LETTER, 0o640, uid=1000, gid=1000,
              xattrs={'user.language': b'en', 'user.comment': b'written on a train'})
    may_read = trees.acl((trees.USER_OBJ, 6, trees.NOBODY), (trees.USER, 4, 1001), (trees.GROUP_OBJ, 0, trees.NOBODY),
                         (trees.MASK, 4, trees.NOBODY), (trees.OTHER, 0, trees.NOBODY))
    tree.file('/home/ada/for-bruno.txt', FOR_BRUNO, 0o640, uid=1000, gid=1000,
              xattrs={'system.posix_acl_access': may_read})
    tree.file('/home/ada/caff\u00e8 \u2615.txt', 'Names are bytes. These happen to be UTF-8.\n', uid=1000, gid=1000)
    tree.add('/dev/console', 'chr', 0o600, rdev=(5, 1))
    tree.add('/dev/null', 'chr', 0o666, rdev=(1, 3))
    tree.add('/dev/mmcblk0', 'blk', 0o660, gid=6, rdev=(179, 0))
    tree.add('/run/initctl', 'fifo', 0o600)
    tree.file('/var/log/boot.log', ''.join('[%9.6f] %s\n' % line for line in BOOT_LOG), 0o640, gid=4)
    tree.file('/var/lib/mostly-nothing', [(0, b'Eight mebibytes, of which you pay for two blocks.\n'),
                                          (8 * MiB - 5, b'end.\n')])
    tree.file('/var/lib/older-than-unix', 'This file was last changed in 1957.\n', times={'mtime': (-387_244_800, 0)})


def store(tree):
    tree.file('/README', 'The data partition: ext2, no journal, nothing to replay.\n\n'
              'view.png   what the suite is named after, as far as a few lines of Python can draw\n'
              'disc.iso   a disc in a partition in a disk: mount it where it lies\n')
    tree.file('/view.png', view(160, 90))
    with open('disc.iso', 'rb') as disc:
        tree.file('/disc.iso', disc.read())
    tree.dir('/log', 0o775, gid=1000)
    for day in range(1, 8):
        tree.file('/log/day-%d' % day, 'Day %d: %d boats, %s.\n' % (day, day * 37 % 23, ('fog', 'sun', 'rain')[day % 3]),
                  times={'mtime': (trees.EPOCH - (8 - day) * DAY, 0)})


def boot(tree):
    tree.dir('/extlinux')
    tree.file('/extlinux/extlinux.conf', 'label sample\n  linux /vmlinuz\n  append root=/dev/mmcblk0p2 ro\n')
    tree.file('/vmlinuz', 'This is where a kernel would be. It would be 200 times as large as this sample.\n')
    tree.file('/A long name with blanks.txt', 'FAT remembers this name, and a short one beside it.\n')


def disc(tree):
    tree.file('/README.TXT', 'You are four layers down: disc, partition, disk, compressed file.\n')
    tree.dir('/stops')
    for n, stop in enumerate(('Piazzale Roma', 'Rialto', 'San Marco', 'Lido'), 1):
        tree.file('/stops/%d %s.txt' % (n, stop), 'Line 1 stops at %s.\n' % stop)
    tree.link('/last', 'stops/4 Lido.txt')


def view(width, height):
    """A PNG: sky, a bell tower, a lagoon. Its data is stored, not deflated, so that no version of zlib shows."""
    horizon = height * 2 // 3

    def colour(x, y):
        if y >= horizon:
            tower = abs(x - width // 3) < 4 + (x * 7 + y * 13) % 3 and y < horizon + 26
            wave = (x * x // 7 + y * 5) % 11 == 0
            return (120, 96, 84) if tower else (96, 140, 160) if wave else (60, 110, 140)
        if abs(x - width // 3) < 4 and y > 20 or abs(x - width // 3) * 4 < y - 4 and y <= 20:
            return (150, 70, 50)
        roof = horizon - 8 - (x // 9 * 5) % 7
        if y > roof:
            return (190, 120, 80) if x % 9 else (140, 90, 70)
        return (230 - y, 200 - y // 2, 170 + y)
    rows = b''.join(b'\0' + bytes(value for x in range(width) for value in colour(x, y)) for y in range(height))

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    blocks = [rows[at:at + 32 * KiB] for at in range(0, len(rows), 32 * KiB)]
    stored = b'\x78\x01' + b''.join(
        struct.pack('<BHH', n == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for n, block in enumerate(blocks)) + struct.pack('>I', zlib.adler32(rows))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', stored) + chunk(b'IEND', b''))


README = """\
Welcome aboard
==============

You are looking at the root of a small computer that does not exist. Somebody
put its disk into a file, and you have just opened that file without asking the
administrator, without a loop device, and without risk to anything else.

A few things to try:

  ls -l bin dev run          a link, three devices, a pipe; each says what it is
  cat etc/os-release         which system this pretends to be
  du -h --apparent-size var/lib/mostly-nothing; du -h var/lib/mostly-nothing
                             eight mebibytes long, a few kibibytes large
  getfattr -d home/ada/letter.txt
                             what she noted beside the text
  getfacl home/ada/for-bruno.txt
                             who else may read it
  ls -l --time-style=full-iso var/lib/older-than-unix
                             time did not begin in 1970

There is more in usr/share/doc/sample.
"""

HELLO = '#!/bin/sh\necho "Hello from inside an image. My kernel is $(uname -r), and it is yours."\n'

ETC = {
    'os-release': 'NAME="Sample"\nID=sample\nVERSION_ID=1\nPRETTY_NAME="Sample board, first light"\n',
    'hostname': 'laguna\n',
    'hosts': '127.0.0.1 localhost\n127.0.1.1 laguna\n',
    'passwd': 'root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000:Ada:/home/ada:/bin/sh\nbruno:x:1001:1001:Bruno:/home/bruno:/bin/sh\n',
    'group': 'root:x:0:\nadm:x:4:\ndisk:x:6:\nada:x:1000:\nbruno:x:1001:\n',
    'shadow': 'root:*:19675:0:99999:7:::\nada:!:19675:0:99999:7:::\nbruno:!:19675:0:99999:7:::\n',
    'fstab': '# device          mount point  type  options    dump pass\n'
             '/dev/mmcblk0p2    /            ext4  ro         0    1\n'
             '/dev/mmcblk0p1    /boot        vfat  ro,noauto  0    2\n'
             '/dev/mmcblk0p3    /data        ext2  rw         0    2\n',
    'motd': '\n    A view of a city is not the city.\n    A mount of a disk is not the disk.\n    Both will do for a walk.\n\n',
}

DOC = {
    '1-what-is-a-veduta': """\
What is a veduta?

In Venice, two and a half centuries ago, visitors took home a veduta: a painting
of a city, so exact that it could be walked with the eyes. The painter changed
nothing in the city, and needed nobody's leave.

This suite does that with disks. It reads what an image file holds and shows it
as a folder, to you or to one program. The kernel's own drivers would do it too;
but they trust what they read, so they want an administrator. Here an ordinary
program reads the image, and an ordinary program can do no more than you can.
""",
    '2-the-disk-you-are-on': """\
The disk you are on

It has a GPT with three partitions:

  1  FAT     what a boot loader would read
  2  ext4    where you are: extents, checksums, a journal
  3  ext2    the older format, with a picture and a disc image

Disks, partitions and trees are stacked like boxes. A driver for partitions turns
one disk into several; a driver for ext4 turns a disk into a tree; and a file in
a tree can be a disk again. Look at disc.iso on partition 3: it is an image on an
image, and opens the same way.
""",
    '3-what-to-look-at-twice': """\
What to look at twice

Ownership. Files here belong to Ada (1000) and Bruno (1001), whom your machine may
know by other names, or not at all. Numbers are what a disk stores.

Devices. dev/null is a file that says "I am device 1:3". On a mount made by an
ordinary user it stays a statement: nobody opens a device through it.

Set-uid bits and capabilities. usr/bin/ping carries a capability in an attribute
named security.capability. You can see it; it gives you nothing.

Holes. var/lib/mostly-nothing has a length and hardly any content. A good copy
(cp --sparse=always) keeps it small.
""",
}

LETTER = """\
Dear Bruno,

the board is in the mail. I have taken the card out, since the post is what it
is, and send you its image instead: everything that was on it, down to the times
and the owners, in a file that you can open anywhere.

You will not need to write it to a card to look at it. You will not need the
password of the machine in the library either. Open it, read /README, and tell me
whether the water still comes up to the third step.

    Ada
"""

FOR_BRUNO = """\
You are in the access list of this file, so you may read it, although you neither
own it nor belong to its group. Ask getfacl.
"""

BOOT_LOG = [(0.0, 'Booting on a board that does not exist'), (0.081734, 'mmcblk0: 20 MiB, p1 p2 p3'),
            (0.104311, 'EXT4-fs (mmcblk0p2): mounted read-only'), (0.350002, 'laguna: the tide is in'),
            (0.350117, 'login:')]

TREES = {function.__name__: function for function in (board, store, boot)} | {'sample_disc': disc}
