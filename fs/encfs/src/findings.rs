//! What was found wrong with a volume: logged, or, for a check of the whole volume, collected.

use parking_lot::Mutex;

/// Where findings go.
#[derive(Debug, Default)]
pub(crate) struct Findings(Option<Mutex<Vec<String>>>);

impl Findings {
    /// They are collected.
    pub(crate) fn collecting() -> Self {
        Self(Some(Mutex::default()))
    }

    /// Something is wrong, in one sentence.
    pub(crate) fn tell(&self, finding: String) {
        match &self.0 {
            Some(found) => found.lock().push(finding),
            None => tracing::error!("{finding}"),
        }
    }

    /// What was collected since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.as_ref().map(|found| std::mem::take(&mut *found.lock())).unwrap_or_default()
    }
}
