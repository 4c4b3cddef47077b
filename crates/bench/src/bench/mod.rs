//! `tpo-bench bench`: what a pair of TPOs reaches on this machine, beside the plain network and a
//! kernel relay in the same run.
//!
//! Takes a [`Plan`] from the command line; makes a lab for each cell (one way across one link,
//! once), measures it (`measure.rs`, with the load of `load.rs` and the readings of `probe.rs`),
//! and gives a Markdown table, plots and every single result. A cell that fails is told in the
//! table and spoils no other; a signal ends the run, and what was measured until then is kept.

pub(crate) mod compression;
mod corpora;
mod datagrams;
mod load;
mod measure;
mod plan;
mod plot;
mod probe;
mod relay;
mod report;
mod stats;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) use plan::{Link, Measure, Plan, Way, full, grid, quick};
pub(crate) use relay::{End, serve};
use report::{Figures, Record};

use crate::ending::Ending;
use crate::tools::check_tools;

/// One way across one link, once.
#[derive(Clone, Copy)]
struct Cell {
    number: usize,
    link: usize,
    way: Way,
    run: usize,
}

/// What the jobs share.
struct Run<'a> {
    plan: &'a Plan,
    ending: &'a Ending,
    waiting: Mutex<VecDeque<Cell>>,
    records: Mutex<Vec<Record>>,
    results: Option<Mutex<File>>,
    cells: usize,
    start: Instant,
    /// When the last cell was done.
    last: Mutex<Instant>,
}

/// Runs the whole plan; the table goes to standard output, and with an output folder everything
/// goes there.
///
/// # Errors
/// When the folder cannot be written, a cell fails, or a signal asks for the end.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    check_tools()?;
    let ending = Ending::watch()?;
    let results = plan.out.as_deref().map(open_results).transpose()?;
    // Runs outermost: a slow minute of the machine does not meet all runs of one cell.
    let mut cells = VecDeque::new();
    for run in 0..plan.runs {
        for link in 0..plan.links.len() {
            for way in &plan.ways {
                cells.push_back(Cell {
                    number: cells.len(),
                    link,
                    way: *way,
                    run,
                });
            }
        }
    }
    let run = Run {
        plan,
        ending: &ending,
        cells: cells.len(),
        waiting: Mutex::new(cells),
        records: Mutex::default(),
        results: results.map(Mutex::new),
        start: Instant::now(),
        last: Mutex::new(Instant::now()),
    };
    let written = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..plan.jobs.max(1))
            .map(|_| scope.spawn(|| run.work()))
            .collect();
        let joined = jobs.into_iter().map(|job| {
            job.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined
            .collect::<Vec<Result<()>>>()
            .into_iter()
            .collect::<Result<()>>()
    });
    let records = lock(&run.records);
    let text = format!(
        "{}\n{}",
        report::table(&plan.links, &records),
        conditions(plan)
    );
    if let Some(folder) = &plan.out {
        write(folder, "table.md", &text)?;
        for (name, svg) in plot::plots(&plan.links, &records) {
            write(folder, &name, &svg)?;
        }
    }
    print!("{text}");
    written?;
    ending.check()?;
    let failed = records
        .iter()
        .filter(|record| record.failed.is_some())
        .count();
    if failed > 0 {
        bail!(
            "{failed} of {} cells failed; why stands below the table",
            records.len()
        );
    }
    Ok(())
}

impl Run<'_> {
    /// One job: cell after cell, until none is left or a signal ends the bench.
    fn work(&self) -> Result<()> {
        loop {
            if self.ending.check().is_err() {
                return Ok(());
            }
            let Some(cell) = lock(&self.waiting).pop_front() else {
                return Ok(());
            };
            let link = &self.plan.links[cell.link];
            let say = |measure: Measure| {
                self.say(cell, &format!("{measure:?}").to_lowercase());
            };
            // Fits the name of a namespace; each process and each cell has its own.
            let prefix = format!("tpobench{}-{}", std::process::id(), cell.number);
            let mut figures = Figures::new();
            let cell_done = measure::cell(
                self.plan,
                link,
                cell.way,
                &prefix,
                self.ending,
                &say,
                &mut figures,
            );
            if self.ending.check().is_err() {
                // Half a cell is no result.
                return Ok(());
            }
            let failed = cell_done.err().map(|error| format!("{error:#}"));
            if let Some(why) = &failed {
                self.say(cell, &format!("failed: {why}"));
            }
            let record = Record {
                link: cell.link,
                way: cell.way,
                run: cell.run,
                figures,
                failed,
            };
            if let Some(results) = &self.results {
                lock(results)
                    .write_all(record.line(&self.plan.links).as_bytes())
                    .context("write results.jsonl")?;
            }
            lock(&self.records).push(record);
            *lock(&self.last) = Instant::now();
        }
    }

    /// Progress: a courtesy, so that a closed standard error is no failure.
    fn say(&self, cell: Cell, what: &str) {
        let done = lock(&self.records).len();
        let left = match done {
            0 => String::new(),
            done => {
                // As long for each as for those that are done, from when the last of them was.
                let last = *lock(&self.last);
                let each = (last - self.start).as_secs_f64() / done as f64;
                let left = each * (self.cells - done) as f64 - last.elapsed().as_secs_f64();
                format!(", {:.0} s left", left.max(0.0))
            }
        };
        let link = self.plan.links[cell.link].name();
        let _ = writeln!(
            std::io::stderr(),
            "[{}/{}{left}] {link}: {}: {what}",
            cell.number + 1,
            self.cells,
            cell.way.name()
        );
    }
}

/// What a reader of the table must know.
fn conditions(plan: &Plan) -> String {
    let seconds = |time: Duration| time.as_secs_f64();
    format!(
        "Bulk counted for {} s after {} s and {} round trips; medians of {} run(s); {} cell(s) at a time; requests: {}; rate {}. \
         Queue of the link: one bandwidth-delay product, drop-tail; loss in both directions. CPU: both processes in the middle; idle: of the \
         whole machine, which also carries the load and the emulated link, while bulk was counted (near 0: the CPU was the limit).\n",
        seconds(plan.count),
        seconds(plan.warm_up),
        plan.rounds,
        plan.runs,
        plan.jobs.max(1),
        plan.requests,
        if plan.peer_rate {
            "told to the TPOs"
        } else {
            "found out by the TPOs"
        },
    )
}

fn open_results(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("results.jsonl");
    let file = File::options().create(true).append(true).open(&path);
    file.with_context(|| format!("open {}", path.display()))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere is passed on where the jobs are joined.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
