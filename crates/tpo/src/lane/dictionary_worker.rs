//! The dictionary worker: one thread that makes dictionaries for the compression engines of all
//! lanes. In a lane that work would hold up its datagrams. The thread yields to everything else.
//!
//! A lane gives it work by [`Dictionaries`]; what was made comes back as a command.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tpo_engine::Work;

use crate::lanes::handle::{Command, Lane};

/// Jobs that may wait, 8: some megabytes each, and never more than two of a peer.
const WAITING: usize = 8;
/// Times, 500, that a result is offered to a lane that takes no more commands: without it the lane
/// would wait for this dictionary and propose no other.
const PATIENCE: usize = 500;

/// The handle that lanes hold.
#[derive(Clone, Debug)]
pub(crate) struct DictionaryWorker(SyncSender<(Work, Lane)>);

impl DictionaryWorker {
    /// Starts the thread; it ends when the last handle is gone.
    pub(crate) fn start() -> io::Result<DictionaryWorker> {
        let (sender, inbox) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("dictionaries".into())
            .spawn(move || run(inbox))?;
        Ok(DictionaryWorker(sender))
    }

    /// What one lane gives its work to; the results go to that lane.
    pub(crate) fn of_lane(self, lane: Lane) -> Dictionaries {
        Dictionaries { worker: self, lane }
    }
}

/// The worker as one lane has it.
pub(crate) struct Dictionaries {
    worker: DictionaryWorker,
    /// To whom the results go.
    lane: Lane,
}

impl Dictionaries {
    /// Takes work, whose result comes back as [`Command::Worked`]; gives the work back when too
    /// much of it waits.
    pub(crate) fn make(&self, work: Work) -> Result<(), Work> {
        let sent = self.worker.0.try_send((work, self.lane.clone()));
        sent.map_err(|error| match error {
            TrySendError::Full((work, _)) | TrySendError::Disconnected((work, _)) => work,
        })
    }
}

fn run(inbox: Receiver<(Work, Lane)>) {
    crate::sys::yield_to_others();
    for (work, lane) in inbox {
        let mut made = Command::Worked(work.run());
        for _ in 0..PATIENCE {
            match lane.send(made) {
                Ok(()) => break,
                // A burst of connections fills its inbox, or it has ended.
                Err(back) => made = back,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
