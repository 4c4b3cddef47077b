//! What crosses in `tpo-bench bench --compression`: files of this machine, and made-up rows, orders
//! and noise that are the same at each run.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// One kind of file.
pub(super) struct Corpus {
    pub(super) name: &'static str,
    pub(super) shrinks: bool,
    pub(super) bytes: Vec<u8>,
}

/// All kinds, `most` bytes of each at most.
///
/// # Errors
/// When this machine has next to nothing of one.
pub(super) fn corpora(most: usize) -> Result<Vec<Corpus>> {
    let all = [
        (
            "documentation",
            true,
            gather(&["/usr/share/doc"], most, |path| !is_compressed(path)),
        ),
        (
            "source",
            true,
            gather(
                &[
                    "/usr/include",
                    "/usr/share/perl",
                    "/usr/lib/python3",
                    "/usr/lib/gcc",
                ],
                most,
                is_source,
            ),
        ),
        (
            "programs",
            true,
            gather(&["/usr/bin", "/usr/lib"], most, is_program),
        ),
        ("database dump", true, dump(most / 4)),
        (
            "compressed files",
            false,
            gather(&["/usr/share"], most, is_compressed),
        ),
        ("random", false, noise(most / 4)),
    ];
    let all: Vec<Corpus> = all
        .into_iter()
        .map(|(name, shrinks, bytes)| Corpus {
            name,
            shrinks,
            bytes,
        })
        .collect();
    for corpus in &all {
        ensure!(
            corpus.bytes.len() >= 1 << 20,
            "this machine has less than 1 MiB of {}",
            corpus.name
        );
    }
    Ok(all)
}

fn extension(path: &Path) -> &str {
    path.extension()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn is_compressed(path: &Path) -> bool {
    ["gz", "xz", "zst", "bz2", "png", "jpg"].contains(&extension(path))
}

fn is_source(path: &Path) -> bool {
    ["h", "hpp", "c", "pl", "pm", "py", "rs"].contains(&extension(path))
}

fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}

/// The files below some folders that are wanted, one behind the other in the order of their names,
/// until there is enough.
fn gather(folders: &[&str], most: usize, wanted: impl Fn(&Path) -> bool) -> Vec<u8> {
    let (mut bytes, mut waiting) = (
        Vec::new(),
        folders.iter().rev().map(PathBuf::from).collect::<Vec<_>>(),
    );
    while let Some(path) = waiting.pop() {
        // What cannot be read, or is a link to elsewhere, is passed over.
        let Ok(kind) = std::fs::symlink_metadata(&path).map(|found| found.file_type()) else {
            continue;
        };
        if kind.is_dir() {
            let mut inside: Vec<PathBuf> = std::fs::read_dir(&path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            inside.sort();
            waiting.extend(inside.into_iter().rev());
        } else if kind.is_file() && wanted(&path) {
            bytes.extend(std::fs::read(&path).unwrap_or_default());
            if bytes.len() >= most {
                bytes.truncate(most);
                break;
            }
        }
    }
    bytes
}

/// Rows as a database writes them into a dump.
fn dump(most: usize) -> Vec<u8> {
    let mut random = Random(7);
    let mut text = String::from(
        "COPY public.orders (id, customer, created, status, total, note) FROM stdin;\n",
    );
    let mut number = 0;
    while text.len() < most {
        number += 1;
        let status = ["open", "paid", "shipped", "returned"][random.below(4) as usize];
        let note = [
            "\\N",
            "\\N",
            "gift",
            "call before delivery",
            "leave at the door",
        ][random.below(5) as usize];
        let (day, second) = (random.below(28) + 1, random.below(86_400));
        let _ = writeln!(
            text,
            "{number}\t{}\t2026-{:02}-{day:02} {:02}:{:02}:{:02}\t{status}\t{}.{:02}\t{note}",
            random.below(50_000),
            random.below(12) + 1,
            second / 3_600,
            second / 60 % 60,
            second % 60,
            random.below(900),
            random.below(100)
        );
    }
    text.into_bytes()
}

/// Bytes that do not shrink.
pub(super) fn noise(bytes: usize) -> Vec<u8> {
    let mut random = Random(11);
    std::iter::repeat_with(|| random.next().to_le_bytes())
        .flatten()
        .take(bytes)
        .collect()
}

/// xorshift64*: the same files at each run.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

const FIRST_NAMES: [&str; 12] = [
    "Anna", "Ben", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karla",
    "Leon",
];
const LAST_NAMES: [&str; 10] = [
    "Schmidt", "Meyer", "Novak", "Rossi", "Jansen", "Svensson", "Dubois", "Garcia", "Kowalski",
    "Horvat",
];
const GOODS: [&str; 8] = [
    "Steel bolt M8",
    "Copper pipe 15 mm",
    "LED panel 60x60",
    "Cable NYM-J 3x1.5",
    "Drill bit set",
    "Wall anchor 10 mm",
    "Safety gloves L",
    "Paint white 10 l",
];

/// An order as programs send it to each other: a kilobyte of JSON, in which names repeat and
/// numbers do not.
pub(super) fn order(number: usize, random: &mut Random) -> String {
    let mut pick = |among: usize| random.below(among as u64) as usize;
    let (first, last) = (FIRST_NAMES[pick(12)], LAST_NAMES[pick(10)]);
    let mut text = format!(
        "{{\"order_id\": {}, \"customer\": {{\"id\": {}, \"name\": \"{first} {last}\", \"email\": \"{}.{}@example.com\"}}, \
         \"created_at\": \"2026-11-{:02}T{:02}:{:02}:{:02}Z\", \"currency\": \"EUR\", \"status\": \"{}\", \"items\": [",
        100_000 + number,
        pick(100_000),
        first.to_lowercase(),
        last.to_lowercase(),
        pick(28) + 1,
        pick(24),
        pick(60),
        pick(60),
        ["open", "paid", "shipped", "cancelled"][pick(4)],
    );
    let mut cents = 0;
    for item in 0..7 {
        let (quantity, price) = (pick(40) + 1, pick(30_000) + 100);
        cents += quantity * price;
        let comma = if item == 0 { "" } else { ", " };
        let _ = write!(
            text,
            "{comma}{{\"sku\": \"{:06}-{:02}\", \"name\": \"{}\", \"quantity\": {quantity}, \"unit_price\": {}.{:02}, \"tax_rate\": {}}}",
            pick(1_000_000),
            pick(100),
            GOODS[pick(8)],
            price / 100,
            price % 100,
            ["0.07", "0.19"][pick(2)],
        );
    }
    let _ = write!(
        text,
        "], \"total\": {}.{:02}, \"trace\": \"{:016x}\"}}",
        cents / 100,
        cents % 100,
        random.next()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_a_kilobyte() {
        let mut random = Random(3);
        let lengths: Vec<usize> = (0..300)
            .map(|number| order(number, &mut random).len())
            .collect();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((960..1_088).contains(&mean), "{mean} bytes");
        assert!(
            order(1, &mut random) != order(1, &mut random),
            "no two are the same"
        );
    }
}
