//! Tables of what worlds did, under version control. Worlds are deterministic, so any difference is
//! a change of the program.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Works on all items, on two threads, the costliest first. The results are in the order of the
/// items.
pub(crate) fn on_two_threads<T: Sync, R: Send>(
    items: &[T],
    cost: impl Fn(&T) -> u64,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(cost(&items[at])));
    let next = AtomicUsize::new(0);
    let take = || {
        let mut results = Vec::new();
        while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            results.push((at, work(&items[at])));
        }
        results
    };
    #[allow(
        clippy::disallowed_methods,
        reason = "each world is pure; the test runs two at a time"
    )]
    let mut results = std::thread::scope(|scope| {
        let threads = [scope.spawn(take), scope.spawn(take)];
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no item panicked"))
            .collect::<Vec<_>>()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Compares a table with its file. `TPO_MATRIX=write` writes the file instead, after a change that
/// is meant.
pub(crate) fn compare(file: &str, table: &str) {
    if std::env::var("TPO_MATRIX").is_ok_and(|value| value == "write") {
        std::fs::write(file, table).expect("the table can be written");
    }
    let was = std::fs::read_to_string(file).unwrap_or_default();
    for (was, is) in was.lines().zip(table.lines()).filter(|(was, is)| was != is) {
        println!("was {was}\n is {is}");
    }
    assert!(
        was == table,
        "{file} is another now; if that is meant: TPO_MATRIX=write"
    );
}
