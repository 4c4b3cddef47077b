//! What was known of the path when a connection ended, until the next one knows better.

use std::time::Duration;

use crate::config::RememberedPath;
use crate::timer::Nanos;

/// A path and when it was remembered.
#[derive(Clone, Copy)]
struct Noted {
    path: RememberedPath,
    at: Nanos,
}

/// The memory of one path; empty at first, or with what the configuration brought.
pub(crate) struct PathMemory(Option<Noted>);

impl PathMemory {
    /// `path`: from before the mover was made.
    pub(crate) fn new(path: Option<RememberedPath>) -> PathMemory {
        PathMemory(path.map(|path| Noted { path, at: 0 }))
    }

    /// What to believe, when `known` is known of the path now. Of the two the wider one, as long as
    /// they are the same path: an idle connection learns little.
    pub(crate) fn recall(
        &self,
        known: Option<RememberedPath>,
        now: Nanos,
    ) -> Option<RememberedPath> {
        let remembered = self.0.map(|Noted { path, at }| RememberedPath {
            age: path.age + Duration::from_nanos(now.saturating_sub(at)),
            ..path
        });
        match (known, remembered) {
            (Some(known), Some(remembered)) if remembered.is_like(known.round_trip) => {
                Some(if known.bandwidth >= remembered.bandwidth / 2 {
                    known
                } else {
                    remembered
                })
            }
            (Some(known), _) => Some(known),
            (None, remembered) => remembered.filter(|path| path.age <= RememberedPath::LONGEST_AGE),
        }
    }

    /// The connection that knew this ends.
    pub(crate) fn note(&mut self, known: Option<RememberedPath>, now: Nanos) {
        self.0 = self.recall(known, now).map(|path| Noted { path, at: now });
    }
}
