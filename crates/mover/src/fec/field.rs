//! Arithmetic of the codes: the field of 256 elements (polynomial x⁸+x⁴+x³+x+1), its coefficients,
//! and the one operation that costs time.
//!
//! The code is systematic: parity row `i` is the sum of shard `j` times `coefficient(i, j)`. The
//! coefficients are a Cauchy matrix whose columns are scaled so that row 0 is all ones: any `e`
//! rows give back any `e` missing shards, and a row over one shard is its copy.
// Vector instructions, each behind a test of the processor; nothing else of this crate needs it.
#![allow(unsafe_code)]

/// Shards of a block at most.
pub(crate) const MOST_SHARDS: usize = 64;
/// Parity rows of a block at most.
pub(crate) const MOST_ROWS: usize = 16;

const EXP: [u8; 510] = exponents();
const LOG: [u8; 256] = logarithms();

const fn exponents() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value = 1u8;
    let mut at = 0;
    while at < 255 {
        table[at] = value;
        table[at + 255] = value;
        // Times the generator 3.
        value ^= (value << 1) ^ if value & 0x80 != 0 { 0x1b } else { 0 };
        at += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 255 {
        table[EXP[at] as usize] = at as u8;
        at += 1;
    }
    table
}

/// The product of two elements.
pub(crate) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        0
    } else {
        EXP[usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])]
    }
}

/// The inverse of an element that is not 0.
pub(crate) fn invert(a: u8) -> u8 {
    debug_assert!(a != 0);
    EXP[255 - usize::from(LOG[usize::from(a)])]
}

/// What shard `shard` is multiplied with in row `row`.
pub(crate) fn coefficient(row: usize, shard: usize) -> u8 {
    debug_assert!(row < MOST_ROWS && shard < MOST_SHARDS);
    let cauchy = |row: usize| (255 - row as u8) ^ shard as u8;
    multiply(invert(cauchy(row)), cauchy(0))
}

/// Adds `from` times `factor` to `into`; what `into` is longer stays as it is.
pub(crate) fn add_scaled(into: &mut [u8], from: &[u8], factor: u8) {
    debug_assert!(into.len() >= from.len());
    match factor {
        0 => {}
        1 => into
            .iter_mut()
            .zip(from)
            .for_each(|(into, from)| *into ^= from),
        _ => scaled(into, from, factor),
    }
}

/// Multiplies all of `bytes` with `factor`.
pub(crate) fn scale(bytes: &mut [u8], factor: u8) {
    bytes
        .iter_mut()
        .for_each(|byte| *byte = multiply(*byte, factor));
}

/// A product is the sum of the products of the two halves of a byte: two tables of sixteen.
fn halves(factor: u8) -> ([u8; 16], [u8; 16]) {
    let (mut low, mut high) = ([0; 16], [0; 16]);
    for half in 0..16 {
        low[usize::from(half)] = multiply(half, factor);
        high[usize::from(half)] = multiply(half << 4, factor);
    }
    (low, high)
}

fn scaled(into: &mut [u8], from: &[u8], factor: u8) {
    let tables = halves(factor);
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { scaled_avx2(into, from, &tables) };
        }
        if std::arch::is_x86_feature_detected!("ssse3") {
            // SAFETY: the processor has SSSE3.
            return unsafe { scaled_ssse3(into, from, &tables) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the processor has NEON.
        return unsafe { scaled_neon(into, from, &tables) };
    }
    scaled_by_table(into, from, &tables);
}

fn scaled_by_table(into: &mut [u8], from: &[u8], (low, high): &([u8; 16], [u8; 16])) {
    for (into, from) in into.iter_mut().zip(from) {
        *into ^= low[usize::from(from & 15)] ^ high[usize::from(from >> 4)];
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn scaled_avx2(into: &mut [u8], from: &[u8], tables: &([u8; 16], [u8; 16])) {
    use std::arch::x86_64::*;
    let mask = _mm256_set1_epi8(15);
    // SAFETY: unaligned loads of sixteen bytes from arrays of sixteen.
    let table = |half: &[u8; 16]| unsafe {
        _mm256_broadcastsi128_si256(_mm_loadu_si128(half.as_ptr().cast()))
    };
    let (low, high) = (table(&tables.0), table(&tables.1));
    let (mut to, mut of) = (into.chunks_exact_mut(32), from.chunks_exact(32));
    for (to, of) in to.by_ref().zip(of.by_ref()) {
        // SAFETY: unaligned loads and a store of 32 bytes in slices of 32.
        unsafe {
            let bytes = _mm256_loadu_si256(of.as_ptr().cast());
            let lows = _mm256_shuffle_epi8(low, _mm256_and_si256(bytes, mask));
            let highs =
                _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi64(bytes, 4), mask));
            let sum = _mm256_xor_si256(
                _mm256_loadu_si256(to.as_ptr().cast()),
                _mm256_xor_si256(lows, highs),
            );
            _mm256_storeu_si256(to.as_mut_ptr().cast(), sum);
        }
    }
    let done = from.len() / 32 * 32;
    scaled_by_table(&mut into[done..], &from[done..], tables);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
unsafe fn scaled_ssse3(into: &mut [u8], from: &[u8], tables: &([u8; 16], [u8; 16])) {
    use std::arch::x86_64::*;
    let mask = _mm_set1_epi8(15);
    // SAFETY: unaligned loads of sixteen bytes from arrays of sixteen.
    let (low, high) = unsafe {
        (
            _mm_loadu_si128(tables.0.as_ptr().cast()),
            _mm_loadu_si128(tables.1.as_ptr().cast()),
        )
    };
    for (to, of) in into.chunks_exact_mut(16).zip(from.chunks_exact(16)) {
        // SAFETY: unaligned loads and a store of sixteen bytes in slices of sixteen.
        unsafe {
            let bytes = _mm_loadu_si128(of.as_ptr().cast());
            let lows = _mm_shuffle_epi8(low, _mm_and_si128(bytes, mask));
            let highs = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi64(bytes, 4), mask));
            let sum = _mm_xor_si128(
                _mm_loadu_si128(to.as_ptr().cast()),
                _mm_xor_si128(lows, highs),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), sum);
        }
    }
    let done = from.len() / 16 * 16;
    scaled_by_table(&mut into[done..], &from[done..], tables);
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn scaled_neon(into: &mut [u8], from: &[u8], tables: &([u8; 16], [u8; 16])) {
    use std::arch::aarch64::*;
    // SAFETY: loads of sixteen bytes from arrays of sixteen.
    let (low, high) = unsafe { (vld1q_u8(tables.0.as_ptr()), vld1q_u8(tables.1.as_ptr())) };
    for (to, of) in into.chunks_exact_mut(16).zip(from.chunks_exact(16)) {
        // SAFETY: loads and a store of sixteen bytes in slices of sixteen.
        unsafe {
            let bytes = vld1q_u8(of.as_ptr());
            let lows = vqtbl1q_u8(low, vandq_u8(bytes, vdupq_n_u8(15)));
            let highs = vqtbl1q_u8(high, vshrq_n_u8(bytes, 4));
            vst1q_u8(
                to.as_mut_ptr(),
                veorq_u8(vld1q_u8(to.as_ptr()), veorq_u8(lows, highs)),
            );
        }
    }
    let done = from.len() / 16 * 16;
    scaled_by_table(&mut into[done..], &from[done..], tables);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by shifting and adding, from the definition.
    fn slow_multiply(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b > 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
            b >>= 1;
        }
        product
    }

    #[test]
    fn products_and_inverses_are_those_of_the_definition() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), slow_multiply(a, b));
            }
            assert!(a == 0 || multiply(a, invert(a)) == 1);
        }
    }

    type Kernel = fn(&mut [u8], &[u8], u8);

    fn kernels() -> Vec<(&'static str, Kernel)> {
        let mut kernels: Vec<(&str, Kernel)> = vec![
            ("chosen", scaled),
            ("table", |into, from, factor| {
                scaled_by_table(into, from, &halves(factor))
            }),
        ];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                kernels.push(("avx2", |into, from, factor| unsafe {
                    scaled_avx2(into, from, &halves(factor))
                }));
            }
            if std::arch::is_x86_feature_detected!("ssse3") {
                // SAFETY: the processor has SSSE3.
                kernels.push(("ssse3", |into, from, factor| unsafe {
                    scaled_ssse3(into, from, &halves(factor))
                }));
            }
        }
        kernels
    }

    #[test]
    fn every_kernel_agrees_with_the_definition() {
        let mut dice = fastrand::Rng::with_seed(5);
        for _ in 0..500 {
            let from: Vec<u8> = (0..dice.usize(0..200)).map(|_| dice.u8(..)).collect();
            let before: Vec<u8> = (0..from.len() + dice.usize(0..9))
                .map(|_| dice.u8(..))
                .collect();
            let factor = dice.u8(..);
            let mut expected = before.clone();
            expected
                .iter_mut()
                .zip(&from)
                .for_each(|(into, from)| *into ^= slow_multiply(*from, factor));
            for (name, kernel) in kernels() {
                let mut into = before.clone();
                kernel(&mut into, &from, factor);
                assert!(into == expected, "{name}, factor {factor}");
            }
            let mut into = before.clone();
            add_scaled(&mut into, &from, factor);
            assert!(into == expected);
        }
    }

    #[test]
    fn the_first_row_is_a_plain_sum() {
        assert!((0..MOST_SHARDS).all(|shard| coefficient(0, shard) == 1));
    }

    /// How fast each kernel is: `cargo test --release -p tpo-mover --lib -- --ignored --nocapture
    /// kernel_speed`.
    #[test]
    #[ignore = "a figure for people"]
    fn kernel_speed() {
        let from = vec![7; 1_432];
        let mut into = vec![9; 1_432];
        for (name, kernel) in kernels() {
            #[expect(
                clippy::disallowed_methods,
                reason = "a stopwatch, outside of the machine"
            )]
            let start = std::time::Instant::now();
            for turn in 0..200_000u32 {
                kernel(&mut into, &from, turn as u8 | 2);
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a stopwatch, outside of the machine"
            )]
            let took = start.elapsed();
            println!(
                "{name}: {:.1} GB/s",
                200_000.0 * 1_432.0 / took.as_secs_f64() / 1e9
            );
        }
    }
}
