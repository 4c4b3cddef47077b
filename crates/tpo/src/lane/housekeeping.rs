//! What a lane does beside its work: it writes down what it knows of the path, says in the log what
//! came from the peer and had no effect, and gives memory back to the system.

use std::time::{Duration, Instant};

use tpo_engine::Peer;
use tracing::{Level, debug, enabled};

use super::path_cache::PathCache;
use crate::status::drops::{self, DropLog};
use crate::sys;

/// The path is written down every 60 s, so that a daemon that is killed knows nearly as much
/// afterwards as one that ended.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Memory is given back after a flood of packet flows: when there were more than these, and most of
/// them are gone.
const MANY_PACKET_FLOWS: usize = 8_192;
/// Memory is also given back when more than 8 MiB were held and half of that is not any more.
const MUCH_MEMORY_BYTES: usize = 8 << 20;
/// For the second reason memory is given back at most every 60 s: a large window fills and empties
/// all the time.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(60);

/// The housekeeping of one lane.
pub(super) struct Housekeeping {
    /// The peer's name, for logs.
    name: String,
    path_cache: Option<PathCache>,
    /// When the path is written down next.
    save_at: Instant,
    drop_log: DropLog,
    /// The most packet flows since memory was given back last.
    most_packet_flows: usize,
    /// The most bytes held since then.
    most_memory: usize,
    /// When memory was given back last.
    gave_back: Instant,
}

impl Housekeeping {
    pub(super) fn new(name: String, path_cache: Option<PathCache>, now: Instant) -> Housekeeping {
        Housekeeping {
            name,
            path_cache,
            save_at: now + SAVE_EVERY,
            drop_log: DropLog::new(now),
            most_packet_flows: 0,
            most_memory: 0,
            gave_back: now,
        }
    }

    /// To be called now and then, at least every second. `memory`: bytes that the engine holds.
    pub(super) fn turn(&mut self, peer: &mut Peer, memory: usize, now: Instant) {
        if now >= self.save_at {
            self.save_path(peer, now);
        }
        if self.drop_log.is_due(now) && enabled!(Level::DEBUG) {
            self.log_drops(peer, now);
        }
        self.give_back(peer.packet_flows(), memory, now);
    }

    /// One line for all kinds that came up since the last one.
    fn log_drops(&mut self, peer: &Peer, now: Instant) {
        let stats = peer.stats();
        let all = drops::of_mover(&stats.mover.counters)
            .into_iter()
            .chain(drops::of_engine(&stats.counters));
        if let Some(kinds) = self.drop_log.look(all, now) {
            debug!(peer = %self.name, "dropped since the last such line: {kinds}");
        }
    }

    /// Writes down what is known of the path.
    pub(super) fn save_path(&mut self, peer: &mut Peer, now: Instant) {
        self.save_at = now + SAVE_EVERY;
        if let (Some(cache), Some(path)) = (&self.path_cache, peer.path(now))
            && let Err(error) = cache.save(&path)
        {
            debug!(peer = %self.name, %error, "the path cannot be written down");
        }
    }

    /// After a flood, or when compression has come to rest. Earlier it would be for nothing,
    /// because the flows that are left lie on the same pages.
    fn give_back(&mut self, packet_flows: usize, memory: usize, now: Instant) {
        self.most_packet_flows = self.most_packet_flows.max(packet_flows);
        self.most_memory = self.most_memory.max(memory);
        let flood_is_over = self.most_packet_flows > MANY_PACKET_FLOWS
            && packet_flows < self.most_packet_flows / 64;
        let much_is_free = self.most_memory > MUCH_MEMORY_BYTES && memory < self.most_memory / 2;
        if flood_is_over || (much_is_free && now >= self.gave_back + GIVE_BACK_EVERY) {
            (self.most_packet_flows, self.most_memory, self.gave_back) =
                (packet_flows, memory, now);
            sys::give_back_memory();
        }
    }
}
