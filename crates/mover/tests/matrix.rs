//! What one bulk transfer reaches on every kind of link, in virtual time: a table under version
//! control, `matrix.txt`.
//!
//! `the_matrix_is_what_it_was` runs its cells and compares; worlds are deterministic, so any
//! difference is a change of the program. After a change that is meant: `TPO_MATRIX=write cargo
//! test -p tpo-mover --test matrix`. The rows must also keep what is promised, each cell's own
//! bounds. `grid` is the whole grid with longer times, for people.

mod pair;

use pair::reach::{Cell, Reached, reach};
use pair::table::{compare, on_two_threads};
use tpo_mover::Congestion;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix.txt");

/// A cell, how long it is warmed and measured (seconds), and what it must reach.
struct Row {
    cell: Cell,
    warm: f64,
    time: f64,
    least_eta: f64,
    /// Of all datagrams. More than a hundredth widens the bounds on wire bytes and queue too: on
    /// tiny links probes and acknowledgements are a larger part.
    most_dropped: f64,
}

impl Row {
    /// A row of the grid: everything that start-up does is over after twenty round trips and three
    /// seconds.
    fn new(cell: Cell, time: f64) -> Row {
        Row {
            cell,
            warm: 3.0 + 0.02 * cell.rtt_ms,
            time,
            least_eta: 0.98,
            most_dropped: 0.01,
        }
    }

    /// An exception from what is promised of the rest.
    fn at_least(self, least_eta: f64) -> Row {
        Row { least_eta, ..self }
    }

    /// It may drop more.
    fn dropping(self, most_dropped: f64) -> Row {
        Row {
            most_dropped,
            ..self
        }
    }
}

fn run(rows: &[Row]) -> Vec<Reached> {
    let cost = |row: &Row| (row.cell.mbit * (row.warm + row.time)) as u64;
    on_two_threads(rows, cost, |row| {
        reach(&row.cell, row.warm, row.time, |_| ())
    })
}

fn grid_cells(mbits: &[f64], rtts: &[f64], losses: &[f64]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &mbit in mbits {
        for &rtt_ms in rtts {
            cells.extend(losses.iter().map(|&loss| Cell::new(mbit, rtt_ms, loss)));
        }
    }
    cells
}

/// What is promised of every row, in words for those that break it.
fn complaint(row: &Row, reached: &Reached) -> Option<String> {
    let loss = row.cell.loss_percent / 100.0;
    let longest = (row.cell.rtt_ms / 10.0).max(if row.most_dropped > 0.01 { 12.0 } else { 10.0 });
    let mut wrong = Vec::new();
    if reached.eta < row.least_eta {
        wrong.push(format!("η below {}", row.least_eta));
    }
    if reached.queue_ms > longest {
        wrong.push(format!("a queue above {longest} ms"));
    }
    if reached.dropped > row.most_dropped {
        wrong.push(format!("drops above {:.0} %", row.most_dropped * 100.0));
    }
    let wire = (1.0 + loss + 0.01 + 2.0 * (row.most_dropped - 0.01)) / 0.955;
    if reached.wire > wire {
        wrong.push(format!("wire above {wire:.3}"));
    }
    (!wrong.is_empty()).then(|| wrong.join(", "))
}

fn print(rows: &[Row], reached: &[Reached]) {
    for (row, reached) in rows.iter().zip(reached) {
        let wrong = complaint(row, reached).map_or(String::new(), |wrong| format!("  ← {wrong}"));
        println!("{}{}{wrong}", row.cell.name(), reached.row());
    }
}

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = grid_cells(
        &[20.0, 100.0],
        &[20.0, 100.0, 250.0, 600.0],
        &[0.0, 1.0, 5.0],
    )
    .into_iter()
    .map(|cell| {
        // On the longest paths each look for the floor or for the shortest round trip costs more.
        let hard = cell.rtt_ms == 600.0 && cell.loss_percent == 5.0;
        Row::new(cell, 15.0).at_least(if hard { 0.97 } else { 0.98 })
    })
    .collect();
    rows.extend(
        grid_cells(&[500.0], &[20.0, 100.0, 250.0], &[1.0])
            .into_iter()
            .map(|cell| Row::new(cell, 5.0)),
    );
    rows.extend(
        grid_cells(&[1_000.0], &[100.0], &[0.0, 1.0])
            .into_iter()
            .map(|cell| Row::new(cell, 3.0)),
    );
    // Acknowledgements of a long and lossy path are long: they must come often enough to say what
    // became of everything.
    let long = Row::new(Cell::new(200.0, 600.0, 5.0), 15.0).at_least(0.97);
    rows.push(Row { warm: 15.0, ..long });
    rows.push(Row::new(Cell::new(10_000.0, 10.0, 0.0), 1.0));
    let plain = Cell::new(100.0, 100.0, 0.0);
    let lossy = Cell::new(100.0, 100.0, 2.0);
    rows.extend([
        Row::new(Cell::new(100.0, 100.0, 1.0).with("burst=10"), 15.0).at_least(0.93),
        Row::new(lossy.with("burst=10"), 15.0).at_least(0.93),
        Row::new(plain.with("jitter=20ms"), 15.0),
        Row::new(lossy.with("jitter=20ms"), 15.0),
        Row::new(plain.with("reorder=2% reorder_by=100ms"), 15.0),
        Row::new(lossy.with("duplicate=5%"), 15.0),
        // A shallow and a bloated buffer.
        Row::new(plain.with("queue=64KB"), 15.0),
        Row::new(lossy.with("queue=64KB"), 15.0).dropping(0.02),
        Row::new(plain.with("queue=10MB"), 15.0),
        // The smallest products, and the slowest link.
        Row::new(Cell::new(5.0, 10.0, 0.0), 15.0)
            .at_least(0.90)
            .dropping(0.02),
        Row::new(Cell::new(5.0, 100.0, 1.0), 15.0)
            .at_least(0.97)
            .dropping(0.02),
        Row::new(Cell::new(2.0, 80.0, 0.1), 30.0)
            .at_least(0.95)
            .dropping(0.02),
        Row::new(Cell::new(3.0, 150.0, 0.5), 30.0)
            .at_least(0.95)
            .dropping(0.02),
        Row::new(Cell::new(1.0, 800.0, 1.0), 30.0)
            .at_least(0.96)
            .dropping(0.02),
        // Twice what is tolerated, and no queue.
        Row::new(Cell::new(100.0, 100.0, 10.0), 15.0)
            .at_least(0.85)
            .dropping(0.02),
        // Behind a policer, with a bucket of 50 and of 500 ms.
        Row {
            warm: 10.0,
            ..Row::new(plain.with("rate=1gbit police=100mbit"), 30.0)
        }
        .at_least(0.95)
        .dropping(0.03),
        Row {
            warm: 10.0,
            ..Row::new(lossy.with("rate=1gbit police=100mbit"), 30.0)
        }
        .at_least(0.95)
        .dropping(0.03),
        Row {
            warm: 10.0,
            ..Row::new(plain.with("rate=1gbit police=100mbit bucket=6MB"), 30.0)
        }
        .at_least(0.95)
        .dropping(0.06),
        Row {
            warm: 10.0,
            ..Row::new(
                Cell::new(20.0, 50.0, 0.0).with("rate=1gbit police=20mbit"),
                30.0,
            )
        }
        .at_least(0.95)
        .dropping(0.05),
        // Five seconds after the link became narrower or wider.
        Row {
            warm: 15.0,
            ..Row::new(Cell::new(20.0, 100.0, 0.0).after(100.0), 10.0)
        }
        .at_least(0.93),
        Row {
            warm: 15.0,
            ..Row::new(Cell::new(20.0, 100.0, 2.0).after(100.0), 10.0)
        }
        .at_least(0.93),
        Row {
            warm: 15.0,
            ..Row::new(plain.after(20.0), 10.0)
        }
        .at_least(0.93),
        // The rate is known, or believed to be three times what it is.
        Row::new(lossy.configured(), 10.0),
        Row::new(Cell::new(100.0, 600.0, 1.0).configured(), 10.0),
        Row::new(Cell { rate: 3.0, ..plain }, 10.0),
    ]);
    rows
}

#[test]
fn the_matrix_is_what_it_was() {
    let rows = rows();
    let reached = run(&rows);
    let table: String = rows
        .iter()
        .zip(&reached)
        .map(|(row, reached)| format!("{}{}\n", row.cell.name(), reached.row()))
        .collect();
    print(&rows, &reached);
    compare(TABLE, &table);
    let wrong: Vec<String> = rows
        .iter()
        .zip(&reached)
        .filter_map(|(row, reached)| {
            complaint(row, reached).map(|wrong| format!("{}: {wrong}", row.cell.name()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "a table for people: minutes; TPO_SEED chooses another world"]
fn grid() {
    let part = std::env::var("TPO_GRID").unwrap_or_default();
    let mbits: &[f64] = match part.as_str() {
        "small" => &[20.0, 100.0],
        _ => &[20.0, 100.0, 500.0],
    };
    let cells = grid_cells(
        mbits,
        &[20.0, 100.0, 250.0, 600.0],
        &[0.0, 0.5, 1.0, 2.0, 5.0],
    );
    let rows: Vec<Row> = cells
        .into_iter()
        .map(|cell| {
            Row::new(
                Cell {
                    seed: seed(),
                    ..cell
                },
                15.0,
            )
        })
        .collect();
    print(&rows, &run(&rows));
}

fn seed() -> u64 {
    std::env::var("TPO_SEED").map_or(7, |seed| seed.parse().expect("a number"))
}

/// One link of your choice: `TPO_CELL="100 250 5 0 queue=64KB"` is Mbit/s, ms, loss in percent,
/// share of the rate that is configured, more.
#[test]
#[ignore = "a tool for people"]
fn cell() {
    let Ok(text) = std::env::var("TPO_CELL") else {
        return;
    };
    let fields: Vec<f64> = text
        .split_whitespace()
        .take(4)
        .map(|field| field.parse().expect("a number"))
        .collect();
    let extra = text
        .splitn(5, char::is_whitespace)
        .nth(4)
        .unwrap_or_default()
        .to_owned()
        .leak();
    let [mbit, rtt_ms, loss_percent, rate] = fields[..] else {
        panic!("four numbers")
    };
    let cell = Cell {
        mbit,
        rtt_ms,
        loss_percent,
        extra,
        rate,
        was: 0.0,
        seed: seed(),
    };
    let time = std::env::var("TPO_TIME").map_or(20.0, |time| time.parse().expect("seconds"));
    let reached = reach(&cell, 0.0, time, |_| ());
    println!(
        "{}{}  held {} MB",
        cell.name(),
        reached.row(),
        reached.held / 1_000_000
    );
}

/// The other controllers: what CUBIC and the scavenger reach where they are meant to be used, and
/// that they mind what they should.
#[test]
fn cubic_and_scavenger_fill_a_clean_link() {
    for congestion in [Congestion::Cubic, Congestion::Scavenger] {
        for cell in [
            Cell::new(20.0, 50.0, 0.0),
            Cell::new(100.0, 100.0, 0.0),
            Cell::new(100.0, 20.0, 0.0),
        ] {
            let reached = reach(&cell, 15.0, 15.0, move |config| {
                config.congestion = congestion
            });
            println!("{congestion:?} {}{}", cell.name(), reached.row());
            assert!(
                reached.eta >= 0.90,
                "{congestion:?}, {}: η {}",
                cell.name(),
                reached.eta
            );
            assert!(reached.dropped <= 0.01);
            if congestion == Congestion::Scavenger {
                assert!(reached.queue_ms <= 12.0, "{}", reached.queue_ms);
            }
        }
        let lossy = Cell::new(20.0, 50.0, 1.0);
        let reached = reach(&lossy, 15.0, 15.0, move |config| {
            config.congestion = congestion
        });
        println!("{congestion:?} {}{}", lossy.name(), reached.row());
        match congestion {
            // RFC 9438's response function at this loss is about a tenth of this link.
            Congestion::Cubic => assert!((0.05..0.5).contains(&reached.eta), "{}", reached.eta),
            _ => assert!(reached.eta >= 0.75, "{}", reached.eta),
        }
    }
}
