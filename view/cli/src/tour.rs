//! `veduta tour`: the guided first run on the bundled sample.
//!
//! Every step prints the command that it runs as a person would type it, runs it in a process of its own, and says what it
//! does and why. The sample is unpacked into a temporary directory that goes away at the end, whatever happens.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::doctor::Diagnosis;
use crate::failure::Failure;

/// A disk with partitions, compressed; see `images/sample/README.md`.
const SAMPLE: &[u8] = include_bytes!("../../../images/sample/sample.img.zst");

/// Bytes; more than the sample has.
const SAMPLE_MAX: usize = 64 << 20;

/// Set to anything, the tour does as if this machine allowed no mount. For tests, and to see that side of it.
const NO_MOUNT: &str = "VEDUTA_TOUR_NO_MOUNT";

/// Runs the tour.
pub(crate) fn run() -> Result<(), Failure> {
    let dir = tempfile::Builder::new()
        .prefix("veduta-tour-")
        .tempdir()
        .map_err(|error| Failure::system(format!("a temporary directory cannot be made: {error}")))?;
    let tour = Tour::new(dir.path())?;
    let result = tour.walk();
    tour.clean_up();
    let path = dir.path().to_owned();
    dir.close().map_err(|error| Failure::system(format!("{}: {error}", path.display())))?;
    result
}

struct Tour {
    program: PathBuf,
    dir: PathBuf,
    bold: bool,
}

impl Tour {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::system(error.to_string()))?;
        Ok(Self { program, dir: dir.to_owned(), bold: std::io::stdout().is_terminal() })
    }

    fn walk(&self) -> Result<(), Failure> {
        self.say("A disk image: what could be on it?");
        self.unpack()?;
        self.tell(&format!(
            "The sample image, unpacked to {}. It is laid out like the disk of a small computer. \
             `info` looks at it; nothing is mounted, nothing is changed.",
            self.dir.display()
        ));
        self.run(&["info", "sample.img"])?;

        self.say("Looking inside, without a mount");
        self.tell(
            "`#2` names the second partition. `ls`, `cat` and `cp` read straight from the image: they need no permission \
             from anybody, only to read the file.",
        );
        self.run(&["ls", "-l", "sample.img#2:/"])?;
        self.run(&["cat", "sample.img#2:/home/ada/letter.txt"])?;

        let diagnosis = Diagnosis::make();
        if diagnosis.can_mount() && std::env::var_os(NO_MOUNT).is_none() {
            self.mounted()?;
        } else {
            self.unmounted(&diagnosis)?;
        }

        self.say("The end");
        self.tell(
            "The image and the directory are removed. Next: `veduta info` on an image of your own, `veduta mount IMAGE DIR`, \
             `veduta --help`.",
        );
        Ok(())
    }

    /// The rest of the tour, with a mount.
    fn mounted(&self) -> Result<(), Failure> {
        self.say("Mounting it");
        std::fs::create_dir(self.dir.join("mnt"))
            .map_err(|error| Failure::system(format!("mnt: {error}")))?;
        self.tell(
            "Now the partition becomes part of the file system, through FUSE: any program can use it. The command returns once the \
             mount answers, and a server stays in the background.",
        );
        self.run(&["mount", "-o", "ro", "sample.img#2", "mnt"])?;
        self.tell("From here on these are the ordinary programs of this machine.");
        self.run_other(&["ls", "-l", "mnt", "mnt/usr/share/doc/sample"])?;
        self.run_other(&["cat", "mnt/README"])?;
        self.tell("Mounted with ro, reading is all that is allowed, and the image stays as it is:");
        self.run_expecting_failure(&["touch", "mnt/new"])?;

        self.say("Unmounting it");
        self.run(&["umount", "mnt"])
    }

    /// The rest of the tour where no mount is possible.
    fn unmounted(&self, diagnosis: &Diagnosis) -> Result<(), Failure> {
        self.say("No mount here");
        self.tell(
            "This machine allows no mount, so the tour goes on by reading the image. What would allow more:",
        );
        for line in diagnosis.verdict() {
            self.tell(&format!("- {line}"));
        }
        self.run(&["ls", "-l", "sample.img#2:/usr/share/doc/sample"])?;
        self.run(&["cat", "sample.img#2:/README"])?;
        self.run(&["cp", "-r", "sample.img#2:/etc", "etc"])?;
        self.run_other(&["ls", "-l", "etc"])
    }

    fn unpack(&self) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::system(format!("the sample cannot be unpacked: {error}"));
        let bytes = zstd::bulk::decompress(SAMPLE, SAMPLE_MAX).map_err(failed)?;
        let mut file = std::fs::File::create(self.dir.join("sample.img")).map_err(failed)?;
        write_sparse(&mut file, &bytes).map_err(failed)
    }

    /// Takes away a mount that a failed step left.
    fn clean_up(&self) {
        let mnt = self.dir.join("mnt");
        if veduta_fuse::MountPoint::at(&mnt).is_ok() {
            let _ = Command::new(&self.program).args(["umount", "-l"]).arg(&mnt).status();
        }
    }

    fn say(&self, heading: &str) {
        if self.bold { println!("\x1b[1m{heading}\x1b[0m\n") } else { println!("{heading}\n") }
    }

    fn tell(&self, text: &str) {
        let width = 78;
        let mut column = 0;
        for word in text.split_whitespace() {
            if column > 0 && column + 1 + word.len() > width {
                println!();
                column = 0;
            } else if column > 0 {
                print!(" ");
                column += 1;
            }
            print!("{word}");
            column += word.len();
        }
        println!("\n");
    }

    fn run(&self, args: &[&str]) -> Result<(), Failure> {
        self.show("veduta", args);
        let mut command = Command::new(&self.program);
        command.args(args);
        self.spawn(command, "veduta")
    }

    fn run_other(&self, words: &[&str]) -> Result<(), Failure> {
        let Some((program, args)) = words.split_first() else { return Ok(()) };
        self.show(program, args);
        let mut command = Command::new(program);
        command.args(args);
        // A machine may lack even `ls`; then our own reading serves as well.
        match self.spawn(command, program) {
            Err(_) if which(program).is_none() => {
                println!("({program} is not on this machine)");
                Ok(())
            }
            done => done,
        }
    }

    fn run_expecting_failure(&self, words: &[&str]) -> Result<(), Failure> {
        let Some((program, args)) = words.split_first() else { return Ok(()) };
        if which(program).is_none() {
            return Ok(());
        }
        self.show(program, args);
        let mut command = Command::new(program);
        command.args(args);
        match self.spawn(command, program) {
            Err(_) => Ok(()),
            Ok(()) => Err(Failure::system("a read-only mount was written to")),
        }
    }

    fn show(&self, program: &str, args: &[&str]) {
        let line = format!("$ {program} {}", args.join(" "));
        if self.bold { println!("\x1b[36m{line}\x1b[0m") } else { println!("{line}") }
    }

    fn spawn(&self, mut command: Command, name: &str) -> Result<(), Failure> {
        let _ = std::io::stdout().flush();
        let failed = |error: std::io::Error| Failure::system(format!("{name}: {error}"));
        // What it complains of belongs between the lines of the tour, wherever those go.
        let complaints = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        let status = command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stderr(complaints)
            .status()
            .map_err(failed)?;
        println!();
        if status.success() {
            Ok(())
        } else {
            Err(Failure::system(format!("the tour ended early: {name}: {status}")))
        }
    }
}

/// Writes bytes, leaving holes where there are zeros.
fn write_sparse(file: &mut std::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, index as u64 * 4096)?;
        }
    }
    file.set_len(bytes.len() as u64)
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}
