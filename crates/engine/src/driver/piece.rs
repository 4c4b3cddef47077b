//! What a stream gives to a buffer in one turn.

use std::time::Instant;

use super::shared::Shared;
use crate::{
    FlowId, Read,
    config::NOTICE,
    flow::stream::Stream,
    message::{Form, Function, Header},
    schedule::Turn,
};

/// What is packed of a stream in one turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) length: usize,
    pub(super) fin: bool,
}

/// What becomes of a turn by what the near application had: a piece, or nothing now. `ask`: bytes
/// that it was asked for; `may_wait`: the far side need not hear at once that there is nothing.
pub(super) fn take_piece(
    stream: &mut Stream,
    turn: Turn,
    read: Read,
    ask: usize,
    may_wait: bool,
    shared: &mut Shared,
    now: Instant,
) -> Option<Piece> {
    match read {
        Read::Bytes(n) => {
            assert!(
                n > 0 && n <= ask,
                "a source read {n} bytes where {ask} were asked for"
            );
            Some(Piece {
                length: n,
                fin: false,
            })
        }
        Read::Blocked if stream.must_open() && may_wait && now < stream.opens_at() => {
            shared.schedule.sleep(turn.slot);
            shared.control.notice(turn.flow, Some(stream.opens_at()));
            None
        }
        Read::Blocked if stream.must_open() => Some(Piece {
            length: 0,
            fin: false,
        }),
        Read::Blocked => {
            // Without a place in the buffer nothing was asked.
            if ask > 0 {
                stream.on_idle(now);
            }
            shared.schedule.sleep(turn.slot);
            None
        }
        Read::End if may_wait && stream.is_answered() && stream.incoming.fin_known() => {
            // Nobody waits for the second end: it rides with what is sent next.
            stream.queued.end = true;
            shared.schedule.stop(turn.slot);
            shared.control.notice(turn.flow, Some(now + NOTICE));
            None
        }
        Read::End => Some(Piece {
            length: 0,
            fin: true,
        }),
        Read::Failed(_) => None,
    }
}

/// How much to ask a stream for: what its turn allows, rounded up so that the buffer ends with a
/// whole segment.
pub(super) fn ask(
    allowance: usize,
    place: usize,
    end: usize,
    segment: usize,
    credit: u64,
) -> usize {
    let space = end.saturating_sub(place);
    let turn_end = place
        .saturating_add(allowance)
        .checked_next_multiple_of(segment)
        .unwrap_or(usize::MAX);
    let credit = usize::try_from(credit).unwrap_or(usize::MAX);
    (turn_end - place).min(space).min(credit)
}

pub(super) fn data_header(flow: FlowId, stream: &Stream, piece: Piece) -> Header {
    Header {
        function: Function::Data,
        fin: piece.fin,
        flow,
        sequence: stream.outgoing.next() as u32,
        length: piece.length as u32,
        form: if stream.is_answered() {
            Form::Short
        } else {
            Form::Stream(stream.key, stream.asked)
        },
    }
}
