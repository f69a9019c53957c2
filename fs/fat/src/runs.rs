//! Where the clusters of a file lie, as runs of clusters that follow each other: to find one costs no walk.

/// `len` clusters from `start` on, the first of which is number `at` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    at: u32,
    start: u32,
    len: u32,
}

/// The clusters of a file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    list: Vec<Run>,
    total: u32,
    /// The chain ends in nonsense behind these.
    pub(crate) broken: bool,
}

impl Runs {
    /// No clusters.
    pub(crate) fn none(broken: bool) -> Self {
        Self { broken, ..Self::default() }
    }

    pub(crate) fn one(start: u32, len: u32) -> Self {
        let mut runs = Self::default();
        runs.push(start, len);
        runs
    }

    /// How many clusters there are.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn push(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.start + last.len == start => last.len += len,
            _ => self.list.push(Run { at: self.total, start, len }),
        }
        self.total += len;
    }

    /// The cluster that is number `index` of the file, and how many follow it directly, itself included.
    pub(crate) fn find(&self, index: u32) -> Option<(u32, u32)> {
        let after = self.list.partition_point(|run| run.at <= index);
        let run = self.list.get(after.checked_sub(1)?)?;
        let within = index - run.at;
        (within < run.len).then(|| (run.start + within, run.len - within))
    }

    pub(crate) fn last(&self) -> Option<u32> {
        self.list.last().map(|run| run.start + run.len - 1)
    }

    /// Start and length of each run.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.list.iter().map(|run| (run.start, run.len))
    }

    /// Whether a cluster comes twice.
    pub(crate) fn overlap(&self) -> bool {
        let mut runs: Vec<(u32, u32)> = self.iter().collect();
        runs.sort_unstable();
        runs.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
    }

    /// Keeps the first `keep` clusters, and returns the others.
    pub(crate) fn truncate(&mut self, keep: u32) -> Vec<(u32, u32)> {
        let mut cut = Vec::new();
        while let Some(run) = self.list.last_mut() {
            if run.at + run.len <= keep {
                break;
            }
            let left = keep.saturating_sub(run.at);
            cut.push((run.start + left, run.len - left));
            self.total -= run.len - left;
            run.len = left;
            if left == 0 {
                self.list.pop();
            }
        }
        cut.reverse();
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_found_after_pushes_and_cuts() {
        let mut runs = Runs::default();
        for (start, len) in [(5, 2), (7, 1), (20, 4), (3, 1)] {
            runs.push(start, len);
        }
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(5, 3), (20, 4), (3, 1)]);
        assert_eq!(
            (runs.find(2), runs.find(4), runs.find(7), runs.find(8)),
            (Some((7, 1)), Some((21, 3)), Some((3, 1)), None)
        );
        assert_eq!(runs.truncate(4), [(21, 3), (3, 1)]);
        assert_eq!((runs.total(), runs.last()), (4, Some(20)));
        assert_eq!(runs.truncate(0), [(5, 3), (20, 1)]);
        assert_eq!(runs, Runs::default());
    }
}
