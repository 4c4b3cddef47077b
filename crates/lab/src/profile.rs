//! What a link is like, and its text form: `rate=100mbit delay=50ms loss=1% queue=1MB outage=10s+2s
//! at=30s:loss=5%`.
//!
//! Read from a person or a test, given to [`Link`](crate::Link). A text may begin with the name of
//! a known kind of link (see [`NAMED`]); later settings override earlier ones.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One direction of a WAN. The default is a perfect link: no delay, no limit, no loss.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// Bits per second of IP packets; `None`: no limit.
    pub rate: Option<u64>,
    /// Drop-tail limit in bytes that wait for the bottleneck; 0: one bandwidth-delay product (2 *
    /// delay * rate), at least 64 KiB. Without a rate nothing ever waits.
    pub queue: usize,
    /// Bits per second of IP packets that a policer lets pass: what comes faster is dropped at
    /// once, without a queue. `None`: no policer.
    pub police: Option<u64>,
    /// The policer's bucket in bytes: what may pass at once after a rest. 0: what its rate makes in
    /// 50 ms, at least 16 KiB.
    pub bucket: usize,
    /// Longest packet in IP bytes that passes; longer ones vanish and nobody is told (a black
    /// hole). 0: any length.
    pub mtu: usize,
    /// Propagation time.
    pub delay: Duration,
    /// Uniform extra delay, from none to this; packets may overtake each other.
    pub jitter: Duration,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Mean number of packets lost in a row; up to 1: independent losses.
    pub burst: f64,
    /// Share of packets held back so that later ones overtake them.
    pub reorder: f64,
    /// How long these are held back; zero: a tenth of the delay, at least 1 ms.
    pub reorder_by: Duration,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets that arrive with flipped bits.
    pub corrupt: f64,
    /// Start and length of times in which everything that leaves the bottleneck is lost, counted
    /// from the link's start (or from when this profile was set).
    pub outages: Vec<(Duration, Duration)>,
    /// Changes to come, counted like outages.
    pub schedule: Vec<(Duration, Change)>,
}

/// One setting of a profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Sets [`Profile::rate`].
    Rate(Option<u64>),
    /// Sets [`Profile::queue`].
    Queue(usize),
    /// Sets [`Profile::police`].
    Police(Option<u64>),
    /// Sets [`Profile::bucket`].
    Bucket(usize),
    /// Sets [`Profile::mtu`].
    Mtu(usize),
    /// Sets [`Profile::delay`].
    Delay(Duration),
    /// Sets [`Profile::jitter`].
    Jitter(Duration),
    /// Sets [`Profile::loss`].
    Loss(f64),
    /// Sets [`Profile::burst`].
    Burst(f64),
    /// Sets [`Profile::reorder`].
    Reorder(f64),
    /// Sets [`Profile::reorder_by`].
    ReorderBy(Duration),
    /// Sets [`Profile::duplicate`].
    Duplicate(f64),
    /// Sets [`Profile::corrupt`].
    Corrupt(f64),
}

/// Known kinds of links: name and text. Figures are round ones of the kind, not measurements of a
/// product.
pub const NAMED: &[(&str, &str)] = &[
    ("perfect", ""),
    ("metro", "rate=1gbit delay=2ms"),
    ("continent", "rate=1gbit delay=20ms loss=0.01%"),
    ("ocean", "rate=1gbit delay=50ms loss=0.1%"),
    ("demo", "rate=100mbit delay=50ms loss=1%"),
    ("dsl", "rate=16mbit delay=15ms jitter=1ms queue=256KiB"),
    (
        "mobile",
        "rate=30mbit delay=30ms jitter=8ms loss=0.5% burst=4 queue=1MB",
    ),
    (
        "leo",
        "rate=150mbit delay=20ms jitter=4ms loss=0.5% burst=8",
    ),
    (
        "geo",
        "rate=20mbit delay=290ms jitter=3ms loss=0.5% burst=3",
    ),
    (
        "storm",
        "rate=50mbit delay=100ms jitter=20ms loss=10% burst=3 reorder=2% duplicate=1% corrupt=0.5%",
    ),
];

/// A text that is no profile: which key, what was found there and what would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileError {
    /// The key, or the word itself where no key could be told.
    pub key: String,
    /// What stood there.
    pub found: String,
    /// What would have been accepted.
    pub would_do: &'static str,
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "link setting `{}`: found `{}`, would accept {}",
            self.key, self.found, self.would_do
        )
    }
}

impl std::error::Error for ProfileError {}

impl Profile {
    /// A known kind of link by its name.
    pub fn named(name: &str) -> Option<Profile> {
        let (_, text) = NAMED.iter().find(|(known, _)| *known == name)?;
        Some(
            text.parse()
                .expect("the texts in NAMED are profiles; a test parses each"),
        )
    }

    /// Applies one setting.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Rate(rate) => self.rate = rate,
            Change::Queue(queue) => self.queue = queue,
            Change::Police(rate) => self.police = rate,
            Change::Bucket(bucket) => self.bucket = bucket,
            Change::Mtu(mtu) => self.mtu = mtu,
            Change::Delay(delay) => self.delay = delay,
            Change::Jitter(jitter) => self.jitter = jitter,
            Change::Loss(loss) => self.loss = loss,
            Change::Burst(burst) => self.burst = burst,
            Change::Reorder(reorder) => self.reorder = reorder,
            Change::ReorderBy(by) => self.reorder_by = by,
            Change::Duplicate(duplicate) => self.duplicate = duplicate,
            Change::Corrupt(corrupt) => self.corrupt = corrupt,
        }
    }

    /// The drop-tail limit in bytes, with the default resolved.
    pub(crate) fn queue_limit(&self) -> usize {
        const SMALLEST: usize = 64 * 1024;
        match (self.queue, self.rate) {
            (0, Some(rate)) => {
                ((2.0 * self.delay.as_secs_f64() * rate as f64 / 8.0) as usize).max(SMALLEST)
            }
            (0, None) => SMALLEST,
            (queue, _) => queue,
        }
    }

    /// The policer's bucket in bytes, with the default resolved.
    pub(crate) fn bucket_size(&self) -> usize {
        const SMALLEST: usize = 16 * 1024;
        match (self.bucket, self.police) {
            (0, rate) => ((rate.unwrap_or(0) / 8 / 20) as usize).max(SMALLEST),
            (bucket, _) => bucket,
        }
    }

    /// How long a reordered packet is held back, with the default resolved.
    pub fn held_back(&self) -> Duration {
        match self.reorder_by {
            Duration::ZERO => (self.delay / 10).max(Duration::from_millis(1)),
            by => by,
        }
    }

    /// Every plain setting, in the order of the text form.
    fn settings(&self) -> [Change; 13] {
        [
            Change::Rate(self.rate),
            Change::Delay(self.delay),
            Change::Jitter(self.jitter),
            Change::Queue(self.queue),
            Change::Police(self.police),
            Change::Bucket(self.bucket),
            Change::Mtu(self.mtu),
            Change::Loss(self.loss),
            Change::Burst(self.burst),
            Change::Reorder(self.reorder),
            Change::ReorderBy(self.reorder_by),
            Change::Duplicate(self.duplicate),
            Change::Corrupt(self.corrupt),
        ]
    }
}

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut profile = Profile::default();
        for (i, word) in text.split_whitespace().enumerate() {
            let Some((key, value)) = word.split_once('=') else {
                match Profile::named(word) {
                    Some(named) if i == 0 => profile = named,
                    _ => {
                        return Err(refuse(
                            word,
                            word,
                            "key=value, or first the name of a known link such as `demo`",
                        ));
                    }
                }
                continue;
            };
            match key {
                "outage" => {
                    let would_do = "start+length, such as 10s+2s";
                    let (start, length) = value
                        .split_once('+')
                        .ok_or_else(|| refuse(key, value, would_do))?;
                    profile
                        .outages
                        .push((duration(key, start)?, duration(key, length)?));
                }
                "at" => {
                    let would_do = "time:key=value, such as 10s:rate=10mbit,loss=2%";
                    let (when, changes) = value
                        .split_once(':')
                        .ok_or_else(|| refuse(key, value, would_do))?;
                    let when = duration(key, when)?;
                    for change in changes.split(',') {
                        let (key, value) = change
                            .split_once('=')
                            .ok_or_else(|| refuse(key, change, would_do))?;
                        profile.schedule.push((when, Change::parse(key, value)?));
                    }
                }
                _ => profile.apply(Change::parse(key, value)?),
            }
        }
        profile.schedule.sort_by_key(|(when, _)| *when);
        Ok(profile)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed = self
            .settings()
            .into_iter()
            .zip(Profile::default().settings());
        let mut words: Vec<String> = changed
            .filter(|(is, was)| is != was)
            .map(|(is, _)| is.to_string())
            .collect();
        words.extend(
            self.outages
                .iter()
                .map(|(at, long)| format!("outage={}+{}", Time(*at), Time(*long))),
        );
        words.extend(
            self.schedule
                .iter()
                .map(|(at, change)| format!("at={}:{change}", Time(*at))),
        );
        if words.is_empty() {
            words.push("perfect".into());
        }
        f.write_str(&words.join(" "))
    }
}

impl Change {
    fn parse(key: &str, value: &str) -> Result<Change, ProfileError> {
        Ok(match key {
            "rate" => Change::Rate(rate(key, value)?),
            "queue" => Change::Queue(size(key, value)?),
            "police" => Change::Police(rate(key, value)?),
            "bucket" => Change::Bucket(size(key, value)?),
            "delay" => Change::Delay(duration(key, value)?),
            "jitter" => Change::Jitter(duration(key, value)?),
            "mtu" => {
                let mtu = value
                    .parse()
                    .ok()
                    .filter(|mtu| *mtu == 0 || (68..=65_535).contains(mtu));
                Change::Mtu(mtu.ok_or_else(|| {
                    refuse(key, value, "bytes from 68 to 65535, or 0 for any length")
                })?)
            }
            "loss" => Change::Loss(share(key, value)?),
            "burst" => {
                let would_do = "a number of packets from 0 to 1000000, such as 10";
                let burst = value.parse().ok().filter(|b| (0.0..=1e6).contains(b));
                Change::Burst(burst.ok_or_else(|| refuse(key, value, would_do))?)
            }
            "reorder" => Change::Reorder(share(key, value)?),
            "reorder_by" => Change::ReorderBy(duration(key, value)?),
            "duplicate" => Change::Duplicate(share(key, value)?),
            "corrupt" => Change::Corrupt(share(key, value)?),
            _ => {
                let would_do = "rate, delay, jitter, queue, police, bucket, mtu, loss, burst, reorder, reorder_by, duplicate, corrupt, outage or at";
                return Err(refuse(key, key, would_do));
            }
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Change::Rate(rate) => write!(f, "rate={}", Rate(rate)),
            Change::Queue(bytes) => write!(f, "queue={}", Size(bytes)),
            Change::Police(rate) => write!(f, "police={}", Rate(rate)),
            Change::Bucket(bytes) => write!(f, "bucket={}", Size(bytes)),
            Change::Delay(time) => write!(f, "delay={}", Time(time)),
            Change::Jitter(time) => write!(f, "jitter={}", Time(time)),
            Change::Mtu(bytes) => write!(f, "mtu={bytes}"),
            Change::Loss(part) => write!(f, "loss={}", Share(part)),
            Change::Burst(packets) => write!(f, "burst={packets}"),
            Change::Reorder(part) => write!(f, "reorder={}", Share(part)),
            Change::ReorderBy(time) => write!(f, "reorder_by={}", Time(time)),
            Change::Duplicate(part) => write!(f, "duplicate={}", Share(part)),
            Change::Corrupt(part) => write!(f, "corrupt={}", Share(part)),
        }
    }
}

struct Rate(Option<u64>);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.0 else {
            return f.write_str("none");
        };
        let (number, unit) = largest(
            rate,
            &[
                (1_000_000_000, "gbit"),
                (1_000_000, "mbit"),
                (1_000, "kbit"),
            ],
            "bit",
        );
        write!(f, "{number}{unit}")
    }
}

struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("auto");
        }
        let units = [
            (1 << 20, "MiB"),
            (1_000_000, "MB"),
            (1 << 10, "KiB"),
            (1_000, "kB"),
        ];
        let (number, unit) = largest(self.0 as u64, &units, "B");
        write!(f, "{number}{unit}")
    }
}

fn refuse(key: &str, found: &str, would_do: &'static str) -> ProfileError {
    ProfileError {
        key: key.into(),
        found: found.into(),
        would_do,
    }
}

/// Splits "1.5ms" into the number and the unit in lower case.
fn number_and_unit(text: &str) -> Option<(f64, String)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].to_ascii_lowercase()))
}

fn rate(key: &str, text: &str) -> Result<Option<u64>, ProfileError> {
    let would_do = "bits per second from 1kbit to 1000gbit, such as 100mbit or 2.5gbit, or none";
    if text == "none" {
        return Ok(None);
    }
    let bits = number_and_unit(text).and_then(|(number, unit)| {
        let factor = match unit.as_str() {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return None,
        };
        Some((number * factor).round())
    });
    // Slower than 1 kbit/s a single packet takes minutes, and the link's picosecond clock would run
    // out.
    let bits = bits.filter(|bits| (1e3..=1e12).contains(bits));
    bits.map(|bits| Some(bits as u64))
        .ok_or_else(|| refuse(key, text, would_do))
}

fn size(key: &str, text: &str) -> Result<usize, ProfileError> {
    if text == "auto" {
        return Ok(0);
    }
    let bytes = number_and_unit(text).and_then(|(number, unit)| {
        let factor = match unit.as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return None,
        };
        Some((number * factor).round())
    });
    let bytes = bytes.filter(|bytes| (1.0..=1e12).contains(bytes));
    bytes
        .map(|bytes| bytes as usize)
        .ok_or_else(|| refuse(key, text, "bytes, such as 64KiB or 1MB, or auto"))
}

fn duration(key: &str, text: &str) -> Result<Duration, ProfileError> {
    let nanos = number_and_unit(text).and_then(|(number, unit)| {
        let factor = match unit.as_str() {
            "ns" => 1.0,
            "us" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" if number == 0.0 => 1.0,
            _ => return None,
        };
        Some((number * factor).round())
    });
    // A week: longer than any run, far from the end of the link's picosecond clock.
    let nanos = nanos.filter(|nanos| *nanos <= 7.0 * 24.0 * 3600e9);
    let would_do = "a time up to a week with its unit, such as 50ms, 1.5s or 200us";
    nanos
        .map(|nanos| Duration::from_nanos(nanos as u64))
        .ok_or_else(|| refuse(key, text, would_do))
}

fn share(key: &str, text: &str) -> Result<f64, ProfileError> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok().map(|p| p / 100.0),
        None => text.parse::<f64>().ok(),
    };
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| refuse(key, text, "a share from 0% to 100%, such as 1% or 0.01"))
}

/// The largest unit that leaves a whole number.
fn largest<'a>(value: u64, units: &[(u64, &'a str)], smallest: &'a str) -> (u64, &'a str) {
    let unit = units
        .iter()
        .find(|(factor, _)| value > 0 && value.is_multiple_of(*factor));
    unit.map_or((value, smallest), |(factor, name)| (value / factor, name))
}

struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
        let (number, unit) = largest(self.0.as_nanos() as u64, &units, "ns");
        write!(f, "{number}{unit}")
    }
}

struct Share(f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Percent where that reads back as the same number, else the plain share.
        let percent = (self.0 * 1e12).round() / 1e10;
        if percent / 100.0 == self.0 {
            write!(f, "{percent}%")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_full_text_is_read() {
        let text = "rate=2.5gbit delay=50ms jitter=1.5ms queue=1MB police=20mbit bucket=64KiB mtu=1400 loss=1% burst=10 reorder=0.02 reorder_by=200us \
                    duplicate=0.1% corrupt=0.01% outage=10s+2s outage=1m+500ms at=30s:loss=5%,rate=none at=20s:delay=10ms";
        let read: Profile = text.parse().unwrap();
        let expected = Profile {
            rate: Some(2_500_000_000),
            queue: 1_000_000,
            mtu: 1400,
            delay: ms(50),
            jitter: Duration::from_micros(1500),
            loss: 0.01,
            police: Some(20_000_000),
            bucket: 64 << 10,
            burst: 10.0,
            reorder: 0.02,
            reorder_by: Duration::from_micros(200),
            duplicate: 0.001,
            corrupt: 0.0001,
            outages: vec![(ms(10_000), ms(2_000)), (ms(60_000), ms(500))],
            schedule: vec![
                (ms(20_000), Change::Delay(ms(10))),
                (ms(30_000), Change::Loss(0.05)),
                (ms(30_000), Change::Rate(None)),
            ],
        };
        assert_eq!(read, expected);
        assert_eq!(
            read.to_string().parse::<Profile>().unwrap(),
            expected,
            "{read}"
        );
    }

    #[test]
    fn every_named_link_reads_back_from_its_own_text() {
        for (name, text) in NAMED {
            let named: Profile = name.parse().unwrap();
            assert_eq!(named, text.parse().unwrap(), "{name}");
            assert_eq!(
                named.to_string().parse::<Profile>().unwrap(),
                named,
                "{name}: {named}"
            );
        }
        assert_eq!(Profile::default().to_string(), "perfect");
        assert_eq!("demo loss=2%".parse::<Profile>().unwrap().loss, 0.02);
    }

    #[test]
    fn any_share_survives_its_text() {
        let mut dice = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let profile = Profile {
                loss: dice.f64(),
                ..Profile::default()
            };
            assert_eq!(profile.to_string().parse::<Profile>().unwrap(), profile);
        }
    }

    #[test]
    fn the_default_queue_is_one_bandwidth_delay_product() {
        assert_eq!(
            "rate=100mbit delay=50ms"
                .parse::<Profile>()
                .unwrap()
                .queue_limit(),
            1_250_000
        );
        assert_eq!(
            "rate=1mbit delay=1ms"
                .parse::<Profile>()
                .unwrap()
                .queue_limit(),
            64 * 1024
        );
        assert_eq!(
            "rate=1mbit queue=3000"
                .parse::<Profile>()
                .unwrap()
                .queue_limit(),
            3000
        );
    }

    #[test]
    fn bad_text_is_refused_with_key_and_finding() {
        let check = |text: &str, key: &str, found: &str| {
            let error = text.parse::<Profile>().unwrap_err();
            assert_eq!(
                (error.key.as_str(), error.found.as_str()),
                (key, found),
                "{text}"
            );
            assert!(error.to_string().contains(error.would_do), "{error}");
        };
        check("speed=1gbit", "speed", "speed");
        check("rate=100", "rate", "100");
        check("rate=0mbit", "rate", "0mbit");
        check("rate=fast", "rate", "fast");
        check("delay=50", "delay", "50");
        check("delay=-1ms", "delay", "-1ms");
        check("delay=9999h", "delay", "9999h");
        check("loss=101%", "loss", "101%");
        check("loss=nan", "loss", "nan");
        check("queue=1XB", "queue", "1XB");
        check("mtu=20", "mtu", "20");
        check("burst=-1", "burst", "-1");
        check("outage=10s", "outage", "10s");
        check("at=10s", "at", "10s");
        check("at=10s:loss", "at", "loss");
        check("at=10s:loss=2", "loss", "2");
        check("loss=1% demo", "demo", "demo");
        check("marsnet", "marsnet", "marsnet");
    }
}
