//! The dictionary worker: one thread that makes dictionaries for the compression engines of all
//! lanes. In a lane that work would hold up its datagrams. The thread yields to everything else.

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
pub struct DictionaryWorker(SyncSender<(Work, Lane)>);

impl DictionaryWorker {
    /// Starts the thread; it ends when the last handle is gone.
    pub fn start() -> io::Result<DictionaryWorker> {
        let (sender, inbox) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("workshop".into())
            .spawn(move || run(inbox))?;
        Ok(DictionaryWorker(sender))
    }

    /// Takes work of a lane, whose command tells the result; gives it back when too much waits.
    pub fn send(&self, work: Work, lane: &Lane) -> Result<(), Work> {
        self.0
            .try_send((work, lane.clone()))
            .map_err(|error| match error {
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
