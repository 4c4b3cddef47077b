//! What a stream behaves like, when its rule says nothing of its class: short requests are
//! interactive, long transfers are bulk.

use std::time::Duration;

use crate::{
    Class,
    config::{LONG, PAUSE, SPARSE_RATE_MS},
};

/// What a stream has sent of late: a bucket that leaks while its application has nothing to send.
/// Waiting for a turn, for credit or for the end of an outage does not count as idle: on a slow
/// link, bulk would look like many short requests.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// Bytes in the bucket.
    recent: u32,
    /// The application has been idle since then: milliseconds of the stream's life, which wrap
    /// after 49 days.
    idle_since: Option<u32>,
}

impl Behaviour {
    /// The class of a new stream.
    pub(crate) fn first_class(asked: Class) -> Class {
        if asked == Class::Normal {
            Class::Interactive
        } else {
            asked
        }
    }

    /// The class of the stream, which has sent `bytes` more at this time of its `life`. `sparse`:
    /// bytes in the bucket up to which it is interactive.
    pub(crate) fn classify(
        &mut self,
        asked: Class,
        bytes: usize,
        sparse: u32,
        life: Duration,
    ) -> Class {
        if asked != Class::Normal {
            return asked;
        }
        let passed = self
            .idle_since
            .take()
            .map_or(0, |since| (life.as_millis() as u32).wrapping_sub(since));
        let leaked = if u128::from(passed) >= PAUSE.as_millis() {
            u32::MAX
        } else {
            passed * SPARSE_RATE_MS
        };
        self.recent = self
            .recent
            .saturating_sub(leaked)
            .saturating_add(bytes as u32)
            .min(2 * LONG);
        match self.recent {
            recent if recent <= sparse => Class::Interactive,
            recent if recent <= LONG => Class::Normal,
            _ => Class::Bulk,
        }
    }

    /// The application has nothing more to send now.
    pub(crate) fn on_idle(&mut self, life: Duration) {
        self.idle_since.get_or_insert(life.as_millis() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SPARSE;

    #[test]
    fn behaviour_tells_what_a_flow_is() {
        let mut flow = Behaviour::default();
        let class = |flow: &mut Behaviour, bytes, at| {
            flow.classify(Class::Normal, bytes, SPARSE, Duration::from_millis(at))
        };
        assert_eq!(class(&mut flow, 0, 0), Class::Interactive, "new");
        assert_eq!(class(&mut flow, 64 << 10, 1), Class::Interactive);
        assert_eq!(class(&mut flow, 10_000, 2), Class::Normal);
        for at in 3..100 {
            class(&mut flow, 30_000, at);
        }
        assert_eq!(
            class(&mut flow, 300, 9_000),
            Class::Bulk,
            "it waited for its turn all the time"
        );
        flow.on_idle(Duration::from_millis(9_000));
        assert_eq!(class(&mut flow, 0, 9_400), Class::Bulk);
        flow.on_idle(Duration::from_millis(9_400));
        flow.on_idle(Duration::from_millis(9_800));
        assert_eq!(
            class(&mut flow, 300, 9_900),
            Class::Interactive,
            "after a pause"
        );
        // A terminal or a call, for an hour.
        for at in (10_000..3_600_000).step_by(20) {
            flow.on_idle(Duration::from_millis(at - 19));
            assert_eq!(class(&mut flow, 1_200, at), Class::Interactive, "at {at}");
        }
        for asked in [Class::Control, Class::Interactive, Class::Bulk] {
            assert_eq!(
                flow.classify(asked, 10 << 20, SPARSE, Duration::from_secs(4_000)),
                asked,
                "its rule says so"
            );
        }
    }
}
