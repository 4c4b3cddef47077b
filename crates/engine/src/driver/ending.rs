//! How flows end other than in order: resets of either side, shortage of memory, the loss of the
//! peer.

use std::{collections::VecDeque, time::Instant};

use super::{Control, Driver, Lingering, Opened, hard_limit};
use crate::{
    Event, FlowId, Status,
    config::{MAX_REFUSALS, RESET_LINGER},
    error::Breach,
    flow::{Ending, Flow},
};

impl Driver {
    /// The near side ends a flow in both directions. It is forgotten at once; the far side is told.
    pub(crate) fn reset(&mut self, flow: FlowId, status: Status) {
        let Some(state) = self.remove(flow) else {
            self.reset_exchange(flow, status);
            return;
        };
        self.counters.flows.reset_here += 1;
        self.queue_reset(flow, &state, status);
    }

    /// As `reset`, and the edge is told too: it was not the edge's wish, or not the right moment to
    /// forget the flow.
    pub(super) fn reset_and_tell(&mut self, flow: FlowId, status: Status) {
        let Some(state) = self.remove(flow) else {
            return;
        };
        self.queue_reset(flow, &state, status);
        self.events.push_back(Event::Reset { flow, status });
    }

    /// The far side broke a flow's rules.
    pub(super) fn on_breach(&mut self, flow: FlowId, breach: Breach) {
        self.counters.breaches.count(breach);
        self.reset_and_tell(flow, Status::Protocol);
    }

    /// The far side may know of the flow: it gets a reset, with the place up to which data was
    /// sent.
    fn queue_reset(&mut self, flow: FlowId, state: &Flow, status: Status) {
        if state.must_open() || state.ending.is_some() {
            return;
        }
        let sequence = state.outgoing.next() as u32;
        // While the peer acknowledges nothing, no new flow is told of, so those that may end here
        // were all alive before: their number is bounded, and only a peer that goes on opening and
        // never acknowledges comes beyond it. It hurts nobody but itself.
        if self.resets >= self.limits.flows + MAX_REFUSALS {
            self.counters.refusals_dropped += 1;
            return;
        }
        self.queue_control(Control::Reset {
            flow,
            sequence,
            protocol: state.key.protocol,
            status,
        });
    }

    /// A flow of the far side is refused that never came into being here.
    pub(super) fn refuse(&mut self, flow: FlowId, protocol: u8, status: Status) {
        self.counters.flows.refused += 1;
        if self.resets >= MAX_REFUSALS {
            self.counters.refusals_dropped += 1;
            return;
        }
        self.queue_control(Control::Reset {
            flow,
            sequence: 0,
            protocol,
            status,
        });
    }

    /// The far side has reset a flow after `at` bytes. What was sent before is still delivered if
    /// the reset is an orderly one.
    pub(super) fn on_reset(&mut self, flow: FlowId, at: u64, status: Status, now: Instant) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if !status.is_orderly() || state.incoming.delivered() >= at {
            self.end_by_far_side(flow, status);
            return;
        }
        if state.ending.is_some() || at > state.window.granted() || !state.incoming.may_end_at(at) {
            self.on_breach(flow, Breach::BeyondEnd);
            return;
        }
        state.ending = Some(Ending { at, status });
        self.schedule.stop(state.slot);
        let delivered = state.incoming.delivered();
        self.lingering.push_back(Lingering {
            until: now + RESET_LINGER,
            flow,
            delivered,
        });
        if self.lingering.len() > 2 * self.flows.len() + 64 {
            // Most of them have ended meanwhile: the list stays as short as the flows are few.
            self.counters.walked += self.lingering.len() as u64;
            self.lingering
                .retain(|lingering| self.flows.contains_key(&lingering.flow));
        }
    }

    pub(super) fn end_by_far_side(&mut self, flow: FlowId, status: Status) {
        if let Some(state) = self.remove(flow) {
            self.counters.flows.reset_there += 1;
            self.counters.flows.refused_there +=
                u64::from(state.ours && status == Status::NoResources);
            self.events.push_back(Event::Reset { flow, status });
        }
    }

    /// Gives back what compression holds when it has had nothing to do for a while.
    fn rest_compression(&mut self, now: Instant) {
        let Some(compressed) = self
            .compressed
            .as_mut()
            .filter(|compressed| compressed.due().is_some_and(|at| at <= now))
        else {
            return;
        };
        if compressed.rests {
            self.compressed = None;
            self.expander.forget();
        } else {
            compressed.rests = true;
            self.shrinker.rest();
            self.expander.rest();
        }
    }

    /// Ends the flows that were reset by the far side and whose application has taken nothing for a
    /// while, and flows of datagrams that rest; gives on datagrams that have waited for those
    /// before them; lets compression rest.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.looked_after = Some(now);
        self.end_exchanges(now);
        self.end_holding(now);
        self.rest_compression(now);
        while self
            .lingering
            .front()
            .is_some_and(|first| first.until <= now)
        {
            let Some(Lingering {
                flow, delivered, ..
            }) = self.lingering.pop_front()
            else {
                break;
            };
            let Some(state) = self.flows.get(&flow) else {
                continue;
            };
            let Some(ending) = state.ending else { continue };
            let now_delivered = state.incoming.delivered();
            if now_delivered > delivered {
                self.lingering.push_back(Lingering {
                    until: now + RESET_LINGER,
                    flow,
                    delivered: now_delivered,
                });
            } else {
                self.end_by_far_side(flow, ending.status);
            }
        }
    }

    /// Keeps a flow inside what it may hold, after it has received something.
    pub(super) fn keep_inside_share(&mut self, flow: FlowId) {
        let own = self
            .flows
            .get(&flow)
            .map_or(0, |state| state.incoming.held());
        if own > self.limits.flow_bytes {
            self.squeeze(flow);
        }
        self.keep_inside_memory();
    }

    /// Keeps all flows inside the memory that they may use.
    pub(crate) fn keep_inside_memory(&mut self) {
        while self.held() > hard_limit(self.budget) {
            let Some(flow) = self
                .holders
                .most(&mut self.flows, &mut self.counters.walked)
            else {
                break;
            };
            self.squeeze(flow);
        }
        self.holders.clean(&self.flows, &mut self.counters.walked);
        self.held_max = self.held_max.max(self.held());
    }

    fn squeeze(&mut self, flow: FlowId) {
        self.counters.flows.out_of_memory += 1;
        self.reset_and_tell(flow, Status::NoResources);
    }

    /// The peer is another instance now: nothing of the flows is known there, nobody needs to be
    /// told.
    pub(crate) fn on_restarted(&mut self) {
        self.peer_credit = None;
        self.lose_all(Status::PeerRestarted);
        self.forget_control();
        self.opened = Opened::new();
        self.forget_compression();
    }

    /// Whoever answers next holds nothing of ours, nor we of theirs.
    fn forget_compression(&mut self) {
        self.shrinker.begin_anew();
        self.expander.begin_anew();
        self.work.clear();
        self.compressed = None;
    }

    /// The peer was given up. Whoever answers next counts as a new instance, to which nothing of
    /// before means anything.
    pub(crate) fn on_dead(&mut self, status: Status) {
        self.peer_credit = None;
        self.lose_all(status);
        self.forget_control();
        self.forget_compression();
        self.events.push_back(Event::Dead);
    }

    /// We go away: the mover's goodbye tells the peer that all flows have ended.
    pub(crate) fn close(&mut self) {
        self.peer_credit = None;
        self.lose_all(Status::GoingAway);
        self.forget_control();
        self.forget_compression();
    }

    fn lose_all(&mut self, status: Status) {
        let mut flows: Vec<FlowId> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        for flow in flows {
            self.remove(flow);
            self.counters.flows.lost += 1;
            self.events.push_back(Event::Reset { flow, status });
        }
        self.lingering = VecDeque::new();
        self.lose_exchanges(status);
    }
}
