//! How the nodes of a disk look: the options `mode`, `uid`, `gid`, `major` and `minor`, which every type of disks has and which the
//! host obeys, since it is the host that shows a [`Drive`](crate::Drive) as nodes.

use crate::{OptionSpec, Options, OptionsError, Perm};

/// What the options say of the nodes of a disk. `None`: the host's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// `mode=`
    pub perm: Option<Perm>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
    /// `major=`
    pub major: Option<u32>,
    /// `minor=`: of the whole disk; a partition's is higher by its number.
    pub minor: Option<u32>,
}

impl DeviceNode {
    /// What a module that makes disks has in its table beside its own options.
    pub const OPTIONS: [OptionSpec; 5] = [
        OptionSpec::with_value(
            "mode",
            "MODE",
            "The permissions of the disk and its partitions, octal; 0660 if not given.",
        ),
        OptionSpec::with_value(
            "uid",
            "UID",
            "Who owns the disk and its partitions; who mounts, if not given.",
        ),
        OptionSpec::with_value("gid", "GID", "Which group they belong to; that of who mounts, if not given."),
        OptionSpec::with_value("major", "N", "The major number of the device, in a view."),
        OptionSpec::with_value(
            "minor",
            "N",
            "The minor number of the whole disk, in a view; a partition's is higher by its number.",
        ),
    ];

    /// Reads the options without taking them from whom they were meant for.
    pub fn from_options(options: &Options) -> Result<Self, OptionsError> {
        let mut options = options.clone();
        Ok(Self {
            perm: options.take_octal("mode", 0o777)?.map(Perm::from_mode),
            uid: options.take_parsed("uid", "the number of a user")?,
            gid: options.take_parsed("gid", "the number of a group")?,
            major: options.take_parsed("major", "a number")?,
            minor: options.take_parsed("minor", "a number")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_read_and_stay() {
        let options = Options::parse("size=1M,mode=640,major=3").unwrap();
        let node = DeviceNode::from_options(&options).unwrap();
        assert_eq!(
            node,
            DeviceNode { perm: Some(Perm::from_mode(0o640)), major: Some(3), ..DeviceNode::default() }
        );
        assert_eq!(options.keys().count(), 3);
        assert!(DeviceNode::from_options(&Options::parse("mode=9").unwrap()).is_err());
    }
}
