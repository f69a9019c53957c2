//! A set of byte ranges: which parts of a file are in memory.

use std::ops::Range;

/// Ranges in ascending order that neither touch nor overlap.
#[derive(Default)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// Adds a range.
    pub(crate) fn add(&mut self, mut new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        self.0.retain(|old| {
            let touches = old.start <= new.end && new.start <= old.end;
            if touches {
                new = old.start.min(new.start)..old.end.max(new.end);
            }
            !touches
        });
        let at = self.0.partition_point(|old| old.start < new.start);
        self.0.insert(at, new);
    }

    /// Takes away everything from `end` on.
    pub(crate) fn cut(&mut self, end: u64) {
        self.0.retain(|range| range.start < end);
        if let Some(last) = self.0.last_mut() {
            last.end = last.end.min(end);
        }
    }

    /// The parts of a range that are not in the set.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for have in self.0.iter().filter(|have| have.end > range.start && have.start < range.end) {
            if have.start > at {
                gaps.push(at..have.start);
            }
            at = at.max(have.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_gaps_are_what_is_left() {
        let mut set = Ranges::default();
        for range in [10..20, 30..40, 20..25, 5..7] {
            set.add(range);
        }
        assert_eq!(set.iter().cloned().collect::<Vec<_>>(), [5..7, 10..25, 30..40]);
        assert_eq!(set.missing(0..50), [0..5, 7..10, 25..30, 40..50]);
        assert_eq!(set.missing(12..20), []);
        set.cut(15);
        assert_eq!(set.iter().cloned().collect::<Vec<_>>(), [5..7, 10..15]);
        set.cut(0);
        assert!(set.is_empty());
    }
}
