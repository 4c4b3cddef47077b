//! The packet driver's routing header (claim 14) and the message header (claim 15): parse and emit,
//! nothing else.
//!
//! `docs/wire.md` section 4 is the page that this file follows. The types here are those on the
//! wire; what a flow number or a sequence number means is the business of [`flow`](crate::flow) and
//! [`driver`](crate::driver).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use crate::{
    Class, Compress, Delivery, FlowId, FlowKey, KeyError, PacketKey, Status, StreamKey, Treatment,
    error::PayloadError, key::TCP,
};

/// Length of the routing header.
pub(crate) const ROUTING: usize = 8;
/// Length of the short message header.
pub(crate) const SHORT: usize = 16;
/// Length of the message header with protocol and status.
pub(crate) const STATUS: usize = 18;
const FULL_V4: usize = 32;
const FULL_V6: usize = 56;

/// Function type of the routing header: messages, not compressed. Other numbers are for compressed
/// ones.
const MESSAGES: u8 = 1;
const VERSION: u8 = 1;
const FIN: u8 = 1;
/// Compression: the sender proposes a dictionary, the receiver answers.
const DICTIONARY: u8 = 8;
const HOLDS: u8 = 9;
const PAUSE: u8 = 10;
/// What a flow's rule asks of compression, beside the levels 1 to 6.
const COMPRESS_OFF: u8 = 7;
const COMPRESS_AUTO: u8 = 8;
const ISOLATED: u8 = 0x80;
const IN_ORDER: u8 = 0x40;
/// The first of the function types of packets, one for each delivery.
const PACKET: u8 = 5;

/// Message function types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    /// Bytes of a flow; in full form it also opens the flow.
    Data,
    /// The destination has been connected.
    Accepted,
    /// The other side may send up to the offset in the sequence number.
    Credit,
    /// The credit in the sequence number, and all before it, is taken back as far as it is not
    /// used: nothing more until there is a greater one.
    Pause,
    /// The flow has ended in both directions; the sequence number tells how much data was sent
    /// before.
    Reset,
    /// Make a dictionary: flow and sequence number are the numbers of its first and its last
    /// buffer, the protocol field its generation.
    Dictionary,
    /// The dictionary of the generation in the protocol field is there; or, with a status, cannot
    /// be.
    Holds,
    /// One packet; in full form it also opens the flow. The sequence number counts them.
    Packet(Delivery),
}

/// What the rest of a header says, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The flow's opening has said it all.
    Short,
    /// Protocol and status.
    Status(u8, Status),
    /// Everything that the far side needs to connect a stream.
    Stream(StreamKey, Treatment),
    /// Everything that it needs to know of a flow of packets.
    Packets(PacketKey, Treatment),
}

/// One message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) function: Function,
    pub(crate) fin: bool,
    pub(crate) flow: FlowId,
    pub(crate) sequence: u32,
    pub(crate) length: u32,
    pub(crate) form: Form,
}

/// Bytes of a full header for these addresses.
pub(crate) fn full_length(key: &FlowKey) -> usize {
    if key.source.is_ipv4() && key.destination.is_ipv4() {
        FULL_V4
    } else {
        FULL_V6
    }
}

/// Writes a routing header over the first bytes of `buffer`, the rest of which holds the messages.
pub(crate) fn emit_routing(buffer: &mut [u8], messages: u16) {
    let length = u32::try_from(buffer.len() - ROUTING).expect("a buffer is far smaller than 4 GiB");
    buffer[0] = MESSAGES;
    buffer[1] = 0;
    buffer[2..4].copy_from_slice(&messages.to_be_bytes());
    buffer[4..8].copy_from_slice(&length.to_be_bytes());
}

/// Checks a whole payload and returns its messages: either all of them can be read, or none is.
pub(crate) fn parse_payload(payload: &[u8]) -> Result<Messages<'_>, PayloadError> {
    if payload.len() < ROUTING {
        return Err(PayloadError::Truncated);
    }
    if payload[0] != MESSAGES {
        return Err(PayloadError::Routing(payload[0]));
    }
    let count = u16_at(payload, 2);
    if u32_at(payload, 4) as usize != payload.len() - ROUTING {
        return Err(PayloadError::Truncated);
    }
    let messages = Messages {
        payload,
        at: ROUTING,
        left: count,
    };
    let mut check = Messages {
        payload,
        at: ROUTING,
        left: count,
    };
    while check.left > 0 {
        check.parse_next()?;
    }
    if check.at != payload.len() {
        return Err(PayloadError::LeftOver);
    }
    Ok(messages)
}

/// The messages of a checked payload: each header, and where its data lies in the payload.
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    payload: &'a [u8],
    at: usize,
    left: u16,
}

impl Messages<'_> {
    fn parse_next(&mut self) -> Result<(Header, Range<usize>), PayloadError> {
        let (header, header_length) = Header::parse(&self.payload[self.at..])?;
        let from = self.at + header_length;
        let data = header.length as usize;
        if self.payload.len() - from < data {
            return Err(PayloadError::Truncated);
        }
        self.at = from + data;
        self.left -= 1;
        Ok((header, from..from + data))
    }
}

impl Iterator for Messages<'_> {
    type Item = (Header, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        Some(
            self.parse_next()
                .expect("parse_payload has walked all messages once"),
        )
    }
}

impl Header {
    /// Bytes that `emit` writes.
    pub(crate) fn header_length(&self) -> usize {
        match &self.form {
            Form::Short => SHORT,
            Form::Status(..) => STATUS,
            Form::Stream(key, _) => full_length(key),
            Form::Packets(key, _) => full_length(key),
        }
    }

    /// Writes the header over the first bytes of `out`, which are `header_length()` at least.
    pub(crate) fn emit(&self, out: &mut [u8]) {
        let length = self.header_length();
        let out = &mut out[..length];
        out[0] = VERSION;
        out[1] = length as u8;
        out[2] = self.function.number();
        out[3] = if self.fin { FIN } else { 0 };
        out[4..8].copy_from_slice(&self.flow.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        match &self.form {
            Form::Short => {}
            Form::Status(protocol, status) => {
                out[16] = *protocol;
                out[17] = *status as u8;
            }
            Form::Stream(key, treatment) => emit_key(key, treatment, out),
            Form::Packets(key, treatment) => emit_key(key, treatment, out),
        }
    }

    /// Reads the header at the start of `bytes`; also returns its length.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Header, usize), PayloadError> {
        if bytes.len() < SHORT {
            return Err(PayloadError::Truncated);
        }
        if bytes[0] != VERSION {
            return Err(PayloadError::Version(bytes[0]));
        }
        let length = usize::from(bytes[1]);
        if ![SHORT, STATUS, FULL_V4, FULL_V6].contains(&length) {
            return Err(PayloadError::HeaderLength(bytes[1]));
        }
        if bytes.len() < length {
            return Err(PayloadError::Truncated);
        }
        let function = Function::from_number(bytes[2])?;
        let form = match length {
            SHORT => Form::Short,
            STATUS => Form::Status(bytes[16], Status::from_number(bytes[17])),
            _ => parse_key(bytes, length, function)?,
        };
        let header = Header {
            function,
            fin: bytes[3] & FIN != 0,
            flow: FlowId(u32_at(bytes, 4)),
            sequence: u32_at(bytes, 8),
            length: u32_at(bytes, 12),
            form,
        };
        header.check_form()?;
        Ok((header, length))
    }

    /// Data and packets come short or full; a reset has its status; only those two have data.
    fn check_form(&self) -> Result<(), PayloadError> {
        let fits = match self.function {
            Function::Data => matches!(self.form, Form::Short | Form::Stream(..)),
            Function::Packet(_) => {
                !self.fin && matches!(self.form, Form::Short | Form::Packets(..))
            }
            Function::Accepted | Function::Credit | Function::Pause => {
                self.length == 0 && !self.fin && self.form == Form::Short
            }
            Function::Reset | Function::Dictionary | Function::Holds => {
                self.length == 0 && !self.fin && matches!(self.form, Form::Status(..))
            }
        };
        if fits {
            Ok(())
        } else {
            Err(PayloadError::Form)
        }
    }
}

impl Function {
    fn number(self) -> u8 {
        match self {
            Function::Data => 1,
            Function::Accepted => 2,
            Function::Credit => 3,
            Function::Reset => 4,
            Function::Dictionary => DICTIONARY,
            Function::Holds => HOLDS,
            Function::Pause => PAUSE,
            Function::Packet(delivery) => PACKET + delivery as u8,
        }
    }

    fn from_number(number: u8) -> Result<Function, PayloadError> {
        match number {
            1 => Ok(Function::Data),
            2 => Ok(Function::Accepted),
            3 => Ok(Function::Credit),
            4 => Ok(Function::Reset),
            DICTIONARY => Ok(Function::Dictionary),
            HOLDS => Ok(Function::Holds),
            PAUSE => Ok(Function::Pause),
            other => match other.checked_sub(PACKET).and_then(Delivery::from_number) {
                Some(delivery) => Ok(Function::Packet(delivery)),
                None => Err(PayloadError::Function(other)),
            },
        }
    }
}

fn emit_key(key: &FlowKey, treatment: &Treatment, out: &mut [u8]) {
    out[16] = key.protocol;
    out[17] = Status::None as u8;
    out[18..20].copy_from_slice(&key.source.port().to_be_bytes());
    out[20..22].copy_from_slice(&key.destination.port().to_be_bytes());
    out[22] = treatment.class as u8;
    let isolated = if treatment.isolated { ISOLATED } else { 0 };
    let in_order = if treatment.in_order { IN_ORDER } else { 0 };
    out[23] = compress_number(treatment.compress) | isolated | in_order;
    match (key.source.ip(), key.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out[24..28].copy_from_slice(&source.octets());
            out[28..32].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            out[24..40].copy_from_slice(&source.octets());
            out[40..56].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("a key has one family"),
    }
}

/// Which key it is follows from the function: the protocol must be one of its own, and the
/// addresses in their one form.
fn parse_key(bytes: &[u8], length: usize, function: Function) -> Result<Form, PayloadError> {
    let class = Class::from_number(bytes[22]).ok_or(PayloadError::Class(bytes[22]))?;
    let (source, destination): (IpAddr, IpAddr) = if length == FULL_V4 {
        (v4_at(bytes, 24).into(), v4_at(bytes, 28).into())
    } else {
        (v6_at(bytes, 24).into(), v6_at(bytes, 40).into())
    };
    let (source, destination) = (
        SocketAddr::new(source, u16_at(bytes, 18)),
        SocketAddr::new(destination, u16_at(bytes, 20)),
    );
    let treatment = Treatment {
        class,
        compress: compress_from(bytes[23] & !(ISOLATED | IN_ORDER)),
        isolated: bytes[23] & ISOLATED != 0,
        in_order: bytes[23] & IN_ORDER != 0,
    };
    match function {
        Function::Data if bytes[16] != TCP => Err(KeyError::Protocol(bytes[16])),
        Function::Data => {
            StreamKey::new(source, destination).map(|key| Form::Stream(key, treatment))
        }
        Function::Packet(_) => {
            PacketKey::new(bytes[16], source, destination).map(|key| Form::Packets(key, treatment))
        }
        Function::Accepted
        | Function::Credit
        | Function::Pause
        | Function::Reset
        | Function::Dictionary
        | Function::Holds => return Err(PayloadError::Form),
    }
    .map_err(PayloadError::Key)
}

fn compress_number(compress: Option<Compress>) -> u8 {
    match compress {
        None => 0,
        Some(Compress::Level(level)) => level,
        Some(Compress::Off) => COMPRESS_OFF,
        Some(Compress::Auto) => COMPRESS_AUTO,
    }
}

/// An unknown number is a newer wish, without which everything still works.
fn compress_from(number: u8) -> Option<Compress> {
    match number {
        1..=6 => Some(Compress::Level(number)),
        COMPRESS_OFF => Some(Compress::Off),
        COMPRESS_AUTO => Some(Compress::Auto),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn v4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32_at(bytes, at))
}

fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(v6: bool) -> StreamKey {
        let (source, destination) = if v6 {
            ("[fd10:1::2]:40000", "[fd10:2::2]:80")
        } else {
            ("10.1.1.2:40000", "10.2.2.2:80")
        };
        StreamKey::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    fn packets(v6: bool) -> PacketKey {
        PacketKey::new(17, key(v6).source, key(v6).destination).unwrap()
    }

    fn header(function: Function, form: Form, length: u32) -> Header {
        Header {
            function,
            fin: false,
            flow: FlowId(0x8000_0007),
            sequence: 0xfeed_beef,
            length,
            form,
        }
    }

    #[test]
    fn each_form_round_trips() {
        let headers = [
            header(Function::Data, Form::Short, 9),
            Header {
                fin: true,
                ..header(
                    Function::Data,
                    Form::Stream(key(false), Class::Bulk.into()),
                    9,
                )
            },
            header(
                Function::Data,
                Form::Stream(
                    key(true),
                    Treatment {
                        compress: Some(Compress::Level(3)),
                        isolated: true,
                        ..Class::Interactive.into()
                    },
                ),
                0,
            ),
            header(Function::Accepted, Form::Short, 0),
            header(Function::Credit, Form::Short, 0),
            header(Function::Pause, Form::Short, 0),
            header(Function::Reset, Form::Status(6, Status::Refused), 0),
            header(
                Function::Packet(Delivery::Plain),
                Form::Packets(
                    packets(true),
                    Treatment {
                        compress: Some(Compress::Off),
                        in_order: true,
                        ..Class::Normal.into()
                    },
                ),
                20,
            ),
            header(Function::Packet(Delivery::Timely), Form::Short, 1_200),
        ];
        let lengths = [16, 32, 56, 16, 16, 16, 18, 56, 16];
        for (header, length) in headers.iter().zip(lengths) {
            let mut bytes = [0xaa; 64];
            header.emit(&mut bytes);
            assert_eq!(header.header_length(), length);
            assert_eq!(bytes[length], 0xaa, "emit stays inside its length");
            assert_eq!(Header::parse(&bytes), Ok((*header, length)));
            assert_eq!(
                Header::parse(&bytes[..length - 1]),
                Err(PayloadError::Truncated)
            );
        }
    }

    #[test]
    fn full_ipv4_header_is_byte_for_byte_the_documented_one() {
        let mut bytes = [0; 32];
        header(
            Function::Data,
            Form::Stream(key(false), Class::Normal.into()),
            5,
        )
        .emit(&mut bytes);
        let expected = [
            1, 32, 1, 0, 0x80, 0, 0, 7, 0xfe, 0xed, 0xbe, 0xef, 0, 0, 0, 5, 6, 0, 0x9c, 0x40, 0,
            80, 2, 0, 10, 1, 1, 2, 10, 2, 2, 2,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut good = [0; 32];
        header(
            Function::Data,
            Form::Stream(key(false), Class::Normal.into()),
            0,
        )
        .emit(&mut good);
        let check = |at: usize, value: u8, error: PayloadError| {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Header::parse(&bytes), Err(error));
        };
        check(0, 2, PayloadError::Version(2));
        check(1, 17, PayloadError::HeaderLength(17));
        check(1, 18, PayloadError::Form);
        check(1, 56, PayloadError::Truncated);
        check(2, 11, PayloadError::Function(11));
        check(2, 10, PayloadError::Form);
        check(2, 8, PayloadError::Form);
        check(2, 3, PayloadError::Form);
        check(22, 4, PayloadError::Class(4));
    }

    /// A stream is TCP whatever number stands there, a packet is anything else, and both have
    /// their addresses in the usual form.
    #[test]
    fn no_protocol_becomes_another_by_its_function() {
        let mut stream = [0; 32];
        header(
            Function::Data,
            Form::Stream(key(false), Class::Normal.into()),
            0,
        )
        .emit(&mut stream);
        let packet = Function::Packet(Delivery::Timely);
        for protocol in 0..=255 {
            stream[2] = Function::Data.number();
            stream[16] = protocol;
            let parsed =
                Header::parse(&stream).map(|(header, _)| matches!(header.form, Form::Stream(..)));
            assert_eq!(
                parsed,
                if protocol == 6 {
                    Ok(true)
                } else {
                    Err(PayloadError::Key(KeyError::Protocol(protocol)))
                }
            );
            stream[2] = packet.number();
            let parsed =
                Header::parse(&stream).map(|(header, _)| matches!(header.form, Form::Packets(..)));
            match [0, 6, 43, 44, 58, 60].contains(&protocol) {
                true => assert_eq!(parsed, Err(PayloadError::Key(KeyError::Protocol(protocol)))),
                false => assert_eq!(parsed, Ok(true)),
            }
        }
    }

    #[test]
    fn a_mapped_address_is_no_address() {
        let mut good = [0; 56];
        header(
            Function::Data,
            Form::Stream(key(true), Class::Normal.into()),
            0,
        )
        .emit(&mut good);
        for at in [24, 40] {
            for form in ["::ffff:127.0.0.1", "::ffff:10.2.2.2", "::127.0.0.1"] {
                let mut bytes = good;
                bytes[at..at + 16].copy_from_slice(&form.parse::<Ipv6Addr>().unwrap().octets());
                assert_eq!(
                    Header::parse(&bytes),
                    Err(PayloadError::Key(KeyError::Form)),
                    "{form}"
                );
            }
        }
    }

    #[test]
    fn payload_is_read_whole_or_not_at_all() {
        let first = header(Function::Data, Form::Short, 3);
        let second = header(Function::Credit, Form::Short, 0);
        let mut payload = vec![0; ROUTING + 16 + 3 + 16];
        first.emit(&mut payload[8..]);
        payload[24..27].copy_from_slice(b"abc");
        second.emit(&mut payload[27..]);
        emit_routing(&mut payload, 2);
        let messages: Vec<_> = parse_payload(&payload).unwrap().collect();
        assert_eq!(messages, [(first, 24..27), (second, 43..43)]);

        for cut in 0..payload.len() {
            assert!(parse_payload(&payload[..cut]).is_err());
        }
        let mut fewer = payload.clone();
        emit_routing(&mut fewer, 1);
        assert_eq!(parse_payload(&fewer).err(), Some(PayloadError::LeftOver));
        let mut compressed = payload;
        compressed[0] = 2;
        assert_eq!(
            parse_payload(&compressed).err(),
            Some(PayloadError::Routing(2))
        );
    }
}
