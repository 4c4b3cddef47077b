//! A peer that says anything, for the fuzz targets and the worlds.

use std::net::SocketAddr;

use crate::{
    Class, Compress, Compression, Delivery, FlowId, FlowKey, PacketKey, Status, StreamKey,
    Treatment,
    compress::{
        compressor::Compressor,
        format::{COMPRESSED, HEADER},
        record::Record,
        settings::How,
    },
    message::{self, Form, Function, Header},
};

/// A peer that says anything: payloads with messages of all kinds, well formed and not, in any
/// order.
pub struct Hostile {
    /// The bit of the flows that it opens.
    side: u32,
    next: u32,
    /// Where each of its last flows is.
    offsets: [u32; 16],
    compressor: Compressor,
    record: Record,
    /// Of its last compressed buffer that was made by hand.
    number: u32,
    generation: u8,
}

/// Gives a number below the one that it is told, which is at least one.
pub type Dice<'a> = &'a mut dyn FnMut(u32) -> u32;

impl Hostile {
    /// `higher`: its public key is the higher one.
    pub fn new(higher: bool) -> Hostile {
        Hostile {
            side: if higher { 1 << 31 } else { 0 },
            next: 0,
            offsets: [0; 16],
            compressor: Compressor::new(Compression::default()),
            record: Record::default(),
            number: 1_000_000,
            generation: 0,
        }
    }

    /// The next payload, of at most `most` bytes.
    pub fn payload(&mut self, most: usize, dice: Dice<'_>) -> Vec<u8> {
        let mut payload = match dice(40) {
            0 => (0..dice(600)).map(|_| dice(256) as u8).collect(),
            1..=3 => self.small_compressed(dice),
            _ => self.messages(most, dice),
        };
        match dice(60) {
            // Once it cannot be taken apart, the session is over.
            0 => {
                let at = dice(payload.len().max(1) as u32) as usize;
                payload
                    .get_mut(at)
                    .into_iter()
                    .for_each(|byte| *byte ^= 1 << dice(8));
            }
            1 => payload.truncate(dice(payload.len() as u32 + 1) as usize),
            2..20 if payload.first() == Some(&1) => {
                let how = How {
                    compress: Compress::Auto,
                    isolated: dice(4) == 0,
                };
                self.compressor
                    .compress(&mut payload, how, &mut self.record, 100_000);
            }
            _ => {}
        }
        payload
    }

    /// `count` like messages of a flow that is over or never was.
    fn late(&self, count: u16) -> Vec<u8> {
        let flow = FlowId(self.side | ((1 << 31) - 1));
        let header = Header {
            function: Function::Credit,
            fin: false,
            flow,
            sequence: 0,
            length: 0,
            form: Form::Short,
        };
        let mut message = [0; message::SHORT];
        header.emit(&mut message);
        message.repeat(count.into())
    }

    /// Numbered, and smaller than any sender makes them: nothing, a few bytes, or thousands of
    /// messages.
    fn small_compressed(&mut self, dice: Dice<'_>) -> Vec<u8> {
        let count = if dice(8) == 0 {
            1 + dice(16_000) as u16
        } else {
            0
        };
        let raw = match count {
            0 => vec![0; dice(200) as usize],
            _ => self.late(count),
        };
        let mut frame = vec![0; zstd_safe::compress_bound(raw.len())];
        let length = zstd_safe::compress(&mut frame[..], &raw, 1).expect("it has room");
        let mut payload = vec![0; HEADER];
        payload.extend_from_slice(&frame[4..length]);
        self.number = self.number.wrapping_add(dice(3));
        let inside = (payload.len() - message::ROUTING) as u32;
        payload[0] = COMPRESSED;
        payload[2..4].copy_from_slice(&count.to_be_bytes());
        payload[4..8].copy_from_slice(&inside.to_be_bytes());
        payload[8..12].copy_from_slice(&self.number.to_be_bytes());
        payload[12..16].copy_from_slice(&(raw.len() as u32).to_be_bytes());
        payload
    }

    fn messages(&mut self, most: usize, dice: Dice<'_>) -> Vec<u8> {
        let many = match dice(6) {
            0 => 8_000,
            1 => 400,
            _ => 20,
        };
        let (kind, count) = (dice(12), 1 + dice(many));
        let mut payload = vec![0; message::ROUTING];
        let mut messages = 0;
        for _ in 0..count {
            let header = match kind {
                0 => self.opening(dice),
                1 => self.early(dice),
                2 => self.proposal(dice),
                3 => self.jump(dice),
                4 => self.packet(dice),
                5 => self.bulk(dice),
                _ => self.any(dice),
            };
            let end = payload.len() + header.header_length() + header.length as usize;
            if end > most || messages == u16::MAX {
                break;
            }
            let at = payload.len();
            payload.resize(end, 7);
            header.emit(&mut payload[at..]);
            messages += 1;
        }
        message::emit_routing(&mut payload, messages);
        payload
    }

    fn any(&mut self, dice: Dice<'_>) -> Header {
        match dice(12) {
            0 | 1 => self.opening(dice),
            2 => self.early(dice),
            3 => self.proposal(dice),
            4 => self.jump(dice),
            5 | 6 => self.packet(dice),
            7 | 8 => self.in_order(dice),
            9 => Header {
                fin: true,
                ..self.in_order(dice)
            },
            10 => {
                let function = if dice(2) == 0 {
                    Function::Credit
                } else {
                    Function::Accepted
                };
                let sequence = if dice(2) == 0 {
                    dice(1 << 20)
                } else {
                    dice(u32::MAX)
                };
                Header {
                    function,
                    length: 0,
                    sequence,
                    ..self.in_order(dice)
                }
            }
            _ => {
                let form = Form::Status(dice(256) as u8, Status::from_number(dice(12) as u8));
                Header {
                    function: Function::Reset,
                    length: 0,
                    form,
                    ..self.in_order(dice)
                }
            }
        }
    }

    /// One of its flows, or one of ours, and its place in `offsets`.
    fn flow(&mut self, dice: Dice<'_>) -> (FlowId, usize) {
        let back = dice(16);
        let side = if dice(8) == 0 {
            self.side ^ 1 << 31
        } else {
            self.side
        };
        let number = self.next.wrapping_sub(back) & !(1 << 31);
        (FlowId(side | number), number as usize % 16)
    }

    fn opening(&mut self, dice: Dice<'_>) -> Header {
        self.next = (self.next + 1) & !(1 << 31);
        self.offsets[self.next as usize % 16] = 0;
        let length = if dice(3) == 0 { dice(2_000) } else { dice(4) };
        self.offsets[self.next as usize % 16] += length;
        let function = if dice(6) == 0 {
            Function::Packet(Delivery::Timely)
        } else {
            Function::Data
        };
        let flow = FlowId(self.side | self.next);
        let form = opening_form(function, dice);
        Header {
            function,
            fin: false,
            flow,
            sequence: 0,
            length,
            form,
        }
    }

    /// Much data of another flow each time, which nobody may take.
    fn bulk(&mut self, dice: Dice<'_>) -> Header {
        let opening = self.opening(dice);
        Header {
            function: Function::Data,
            length: dice(60_000),
            ..opening
        }
    }

    fn in_order(&mut self, dice: Dice<'_>) -> Header {
        let (flow, place) = self.flow(dice);
        let length = if dice(3) == 0 {
            dice(30_000)
        } else {
            dice(100)
        };
        let sequence = self.offsets[place];
        self.offsets[place] = sequence.wrapping_add(length);
        Header {
            function: Function::Data,
            fin: false,
            flow,
            sequence,
            length,
            form: Form::Short,
        }
    }

    /// A byte or a few with a gap before it.
    fn early(&mut self, dice: Dice<'_>) -> Header {
        self.offsets[self.next as usize % 16] += 2;
        let flow = FlowId(self.side | self.next);
        let back = dice(8) / 7;
        let sequence = self.offsets[self.next as usize % 16].wrapping_sub(back);
        Header {
            function: Function::Data,
            fin: false,
            flow,
            sequence,
            length: 1,
            form: Form::Short,
        }
    }

    fn proposal(&mut self, dice: Dice<'_>) -> Header {
        self.generation = self.generation.wrapping_add(1);
        let function = if dice(8) == 0 {
            Function::Holds
        } else {
            Function::Dictionary
        };
        let (first, last) = if dice(2) == 0 {
            (dice(50), dice(400))
        } else {
            (
                self.number.saturating_sub(dice(5_000)),
                self.number + dice(2),
            )
        };
        let form = Form::Status(self.generation, Status::None);
        Header {
            function,
            fin: false,
            flow: FlowId(first),
            sequence: last,
            length: 0,
            form,
        }
    }

    /// A reset of a flow far ahead: the window of numbers moves.
    fn jump(&mut self, dice: Dice<'_>) -> Header {
        self.next = (self.next + if dice(2) == 0 { 65_535 } else { dice(200_000) }) & !(1 << 31);
        let form = Form::Status(6, Status::Reset);
        let flow = FlowId(self.side | self.next);
        Header {
            function: Function::Reset,
            fin: false,
            flow,
            sequence: 0,
            length: 0,
            form,
        }
    }

    fn packet(&mut self, dice: Dice<'_>) -> Header {
        let (flow, place) = self.flow(dice);
        let ahead = if dice(20) == 0 {
            dice(100_000)
        } else {
            dice(4)
        };
        self.offsets[place] = self.offsets[place].wrapping_add(ahead);
        let sequence = self.offsets[place].wrapping_sub(dice(40));
        let delivery = Delivery::from_number(dice(3) as u8).expect("there are three");
        let length = if dice(10) == 0 { dice(9_000) } else { dice(60) };
        let function = Function::Packet(delivery);
        let form = if dice(4) == 0 {
            opening_form(function, dice)
        } else {
            Form::Short
        };
        Header {
            function,
            fin: false,
            flow,
            sequence,
            length,
            form,
        }
    }
}

/// The form that opens a flow of the kind that the function carries, and now and then of the other
/// kind.
fn opening_form(function: Function, dice: Dice<'_>) -> Form {
    let (source, destination) = ends(dice);
    let is_stream = (function == Function::Data) != (dice(32) == 0);
    if is_stream {
        Form::Stream(
            StreamKey::new(source, destination).expect("both are IPv4"),
            treatment(dice),
        )
    } else {
        let protocol = [17, 17, 1, 2, 47][dice(5) as usize];
        let key = PacketKey::new(protocol, source, destination).expect("both are IPv4");
        Form::Packets(key, treatment(dice))
    }
}

/// Addresses: those to 10.9.0.0/16 are allowed by [`is_allowed`], and the others are not.
fn ends(dice: Dice<'_>) -> (SocketAddr, SocketAddr) {
    let source = ([10, 0, 0, dice(200) as u8], dice(60_000) as u16).into();
    (
        source,
        (
            [10, 9 + dice(2) as u8, 0, dice(200) as u8],
            dice(60_000) as u16,
        )
            .into(),
    )
}

fn treatment(dice: Dice<'_>) -> Treatment {
    let class = Class::ALL[dice(4) as usize];
    Treatment {
        in_order: dice(2) == 0,
        isolated: dice(4) == 0,
        ..class.into()
    }
}

/// What the worlds with a [`Hostile`] let it reach.
pub fn is_allowed(key: &FlowKey) -> bool {
    matches!(key.destination.ip(), std::net::IpAddr::V4(to) if to.octets()[..2] == [10, 9])
}
