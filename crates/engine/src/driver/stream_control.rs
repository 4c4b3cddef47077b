//! What the far side of a stream is to be told, as it comes into the control queue.

use super::{
    control::{Control, Reset},
    shared::Shared,
};
use crate::{FlowId, Status, config::MAX_REFUSALS, flow::stream::Stream};

/// Grants what the window allows beyond what the peer was told.
pub(super) fn grant(flow: FlowId, stream: &mut Stream, shared: &mut Shared) {
    let delivered = stream.incoming.delivered();
    if stream.window.update(delivered) {
        queue_credit(flow, stream, shared);
    }
}

pub(super) fn queue_credit(flow: FlowId, stream: &mut Stream, shared: &mut Shared) {
    // After its end the far side sends nothing more, and after a reset it knows the stream no
    // longer.
    let may_come = stream.ending.is_none() && !stream.incoming.fin_known();
    if !stream.queued.credit && may_come {
        stream.queued.credit = true;
        shared.control.push(Control::Credit(flow));
    }
}

pub(super) fn queue_pause(flow: FlowId, stream: &mut Stream, shared: &mut Shared) {
    let may_come = stream.ending.is_none() && !stream.incoming.fin_known();
    if !stream.queued.pause && may_come {
        stream.queued.pause = true;
        shared.control.push(Control::Pause(flow));
    }
}

/// The far side may know of the stream: it gets a reset, with the place up to which data was sent.
pub(super) fn queue_reset(flow: FlowId, stream: &Stream, status: Status, shared: &mut Shared) {
    if stream.must_open() || stream.ending.is_some() {
        return;
    }
    // While the peer acknowledges nothing, no new stream is told of, so those that may end here
    // were all alive before: their number is bounded, and only a peer that goes on opening and
    // never acknowledges comes beyond it. It hurts nobody but itself.
    if shared.control.resets() >= shared.limits.flows + MAX_REFUSALS {
        shared.counters.refusals_dropped += 1;
        return;
    }
    shared.control.push(Control::Reset(Reset {
        flow,
        sequence: stream.outgoing.next() as u32,
        protocol: stream.key.protocol,
        status,
    }));
}
