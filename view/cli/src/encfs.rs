//! `veduta encfs`: encrypted directories made, described and checked, and their passwords changed.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};

use veduta_api::{MountError, World};
use veduta_disk::HostWorld;
use veduta_encfs::gocryptfs::{Cipher, Format, NameMode};
use veduta_encfs::volume::{self, NewVolume, Secrets, Volume};
use veduta_encfs::{Inner, v1};

use crate::args::{self, EncfsCommand};
use crate::failure::{Failure, shown};
use crate::progress::Progress;
use crate::render;

pub(crate) fn run(command: &EncfsCommand) -> Result<(), Failure> {
    match command {
        EncfsCommand::Init(args) => init(args),
        EncfsCommand::Passwd(args) => passwd(args),
        EncfsCommand::Info(args) => info(args),
        EncfsCommand::Fsck(args) => fsck(args),
    }
}

fn failed(dir: &OsStr) -> impl Fn(MountError) -> Failure {
    move |error| Failure::mount(Some("encfs"), dir, &error)
}

fn directory(dir: &OsStr) -> Result<Inner, Failure> {
    let (fs, root) = HostWorld::default().tree(dir).map_err(failed(dir))?;
    Ok(Inner::new(fs, root))
}

fn secrets(args: &args::Secrets) -> Secrets {
    Secrets { file: args.passfile.clone(), program: args.extpass.clone(), master_key: false }
}

fn init(args: &args::EncfsInit) -> Result<(), Failure> {
    let inner = directory(&args.dir)?;
    let names = if args.plaintext_names {
        NameMode::Plain
    } else {
        NameMode::Encrypted {
            dir_iv: !args.deterministic_names,
            long_max: Some(args.long_name_max),
            raw64: true,
        }
    };
    let cipher = match (args.cipher, args.reverse) {
        (Some(args::EncfsCipher::AesGcm | args::EncfsCipher::Xchacha), true) => {
            return Err(Failure::usage(
                "a reverse volume is encrypted with aes-siv: its nonces are not random",
            ));
        }
        (Some(args::EncfsCipher::AesSiv), _) | (None, true) => Cipher::AesSiv,
        (Some(args::EncfsCipher::Xchacha), false) => Cipher::XChaCha20Poly1305,
        (Some(args::EncfsCipher::AesGcm) | None, false) => Cipher::AesGcm,
    };
    let milliseconds = args.kdf_time;
    let new = match args.format {
        args::EncfsFormat::Gocryptfs => NewVolume::Gocryptfs {
            format: Format { cipher, names, hkdf: true },
            log_n: args.scrypt_cost,
            reverse: args.reverse,
        },
        _ if args.reverse || args.cipher.is_some() || args.plaintext_names || args.deterministic_names => {
            return Err(Failure::usage(
                "--reverse, --cipher, --plaintext-names and --deterministic-names are for gocryptfs",
            ));
        }
        args::EncfsFormat::Encfs => NewVolume::V1 { format: v1::Format::STANDARD, milliseconds },
        args::EncfsFormat::EncfsParanoia => NewVolume::V1 { format: v1::Format::PARANOIA, milliseconds },
    };
    let master = args.master_key.then(|| Secrets {
        file: args.master_key_file.clone(),
        program: None,
        master_key: true,
    });
    let made = volume::init(&inner, new, &HostWorld::default(), &secrets(&args.secrets), master.as_ref());
    let key = made.map_err(failed(&args.dir))?;
    if let Some(key) = key.filter(|_| std::io::stderr().is_terminal()) {
        let _ = writeln!(
            std::io::stderr(),
            "{} is an encrypted directory now. Its master key is\n\n    {}\n\n\
             Whoever has it needs no password; if {} is lost, nothing but this key opens the directory.\n\
             Keep it on paper, away from the computer.",
            shown(&args.dir),
            &**key,
            if args.reverse { ".gocryptfs.reverse.conf" } else { "gocryptfs.conf" },
        );
    }
    Ok(())
}

fn passwd(args: &args::EncfsPasswd) -> Result<(), Failure> {
    let volume = Volume::find(directory(&args.dir)?, args.reverse).map_err(failed(&args.dir))?;
    let old = Secrets { master_key: args.master_key, ..secrets(&args.secrets) };
    let new =
        Secrets { file: args.new_passfile.clone(), program: args.new_extpass.clone(), master_key: false };
    volume.change_password(&HostWorld::default(), &old, &new, args.scrypt_cost).map_err(failed(&args.dir))
}

fn info(args: &args::EncfsInfo) -> Result<(), Failure> {
    let inner = directory(&args.dir)?;
    let volume = Volume::find(inner, args.reverse).map_err(failed(&args.dir))?;
    let report = volume.describe();
    crate::say(&if args.json { format!("{:#}\n", render::json(&report)) } else { render::text(&report) })
}

fn fsck(args: &args::EncfsFsck) -> Result<(), Failure> {
    let volume = Volume::find(directory(&args.dir)?, false).map_err(failed(&args.dir))?;
    let old = Secrets { master_key: args.master_key, ..secrets(&args.secrets) };
    let mut progress = Progress::new();
    let mut seen = 0;
    let checked = volume.check(&HostWorld::default(), &old, &mut |now| {
        progress.file();
        progress.bytes(now.bytes - seen);
        seen = now.bytes;
    });
    drop(progress);
    let checked = checked.map_err(failed(&args.dir))?;
    for (path, problem) in &checked.problems {
        crate::say(&format!("{}: {problem}\n", shown(path)))?;
    }
    crate::say(&format!(
        "{} entries, {} of content: {}\n",
        checked.nodes,
        render::bytes(checked.bytes),
        match checked.problems.len() {
            0 => "nothing is wrong".to_owned(),
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        }
    ))?;
    if checked.problems.is_empty() {
        Ok(())
    } else {
        Err(failed(&args.dir)(MountError::corrupt("the volume is damaged")))
    }
}
