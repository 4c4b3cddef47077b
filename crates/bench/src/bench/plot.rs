//! Plots of goodput over loss and over the round trip, one line for each way: SVG, drawn here.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::plan::{Link, Way, percent, rate_name};
use super::report::{Record, medians};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Room for the numbers at the left, the title above, the legend at the right and the labels below.
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 150.0;
const BOTTOM: f64 = 50.0;

/// A plot: its title, what its horizontal axis is, and one line for each way.
struct Plot {
    title: String,
    axis: &'static str,
    lines: Vec<(Way, Vec<(f64, f64)>)>,
}

/// All plots that the results make: name of the file, and its text. A line needs two points.
pub(super) fn plots(links: &[Link], records: &[Record]) -> Vec<(String, String)> {
    // Whole numbers order and compare; a share in millionths and a time in microseconds lose
    // nothing that anybody sets.
    type Points = BTreeMap<u64, usize>;
    let mut over_loss: BTreeMap<(u64, u64), Points> = BTreeMap::new();
    let mut over_rtt: BTreeMap<(u64, u64), Points> = BTreeMap::new();
    for (index, link) in links.iter().enumerate() {
        let Some(profile) = &link.profile else {
            continue;
        };
        let Some(rate) = profile.rate else { continue };
        if profile.burst > 1.0 || !profile.jitter.is_zero() {
            continue;
        }
        let (rtt, loss) = (
            link.rtt().as_micros() as u64,
            (profile.loss * 1e6).round() as u64,
        );
        over_loss
            .entry((rate, rtt))
            .or_default()
            .insert(loss, index);
        over_rtt.entry((rate, loss)).or_default().insert(rtt, index);
    }
    let lines = |points: &Points, scale: f64| {
        let line = |way: Way| {
            let value = |index| medians(records, index, way).get("down_mbit");
            let line: Vec<_> = points
                .iter()
                .filter_map(|(x, index)| Some((*x as f64 * scale, value(*index)?)))
                .collect();
            (line.len() > 1).then_some((way, line))
        };
        Way::ALL.into_iter().filter_map(line).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for ((rate, rtt), points) in &over_loss {
        let title = format!("One flow, {}, {} ms", rate_name(*rate), rtt / 1000);
        let plot = Plot {
            title,
            axis: "loss, %",
            lines: lines(points, 1e-4),
        };
        all.push((
            format!("loss-{}mbit-{}ms.svg", rate / 1_000_000, rtt / 1000),
            plot,
        ));
    }
    for ((rate, loss), points) in &over_rtt {
        let loss = percent(*loss as f64 * 1e-6);
        let title = format!("One flow, {}, {loss} % loss", rate_name(*rate));
        let plot = Plot {
            title,
            axis: "round trip, ms",
            lines: lines(points, 1e-3),
        };
        all.push((
            format!("rtt-{}mbit-{loss}percent.svg", rate / 1_000_000),
            plot,
        ));
    }
    all.into_iter()
        .filter(|(_, plot)| !plot.lines.is_empty())
        .map(|(name, plot)| (name, plot.draw()))
        .collect()
}

impl Plot {
    /// Both axes begin at zero, so that no difference looks larger than it is.
    fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, line)| line);
        let (step_x, end_x) = axis(points().map(|point| point.0).fold(0.0, f64::max));
        let (step_y, end_y) = axis(points().map(|point| point.1).fold(0.0, f64::max));
        let x = |value: f64| LEFT + value / end_x * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / end_y * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            self.title
        );
        let (left, right, bottom) = (x(0.0), x(end_x), y(0.0));
        for mark in marks(step_y, end_y) {
            let at = y(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
                left - 6.0,
                at + 4.0
            );
        }
        for mark in marks(step_x, end_x) {
            let at = x(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\" stroke=\"#888\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
                bottom + 4.0,
                bottom + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">goodput, Mbit/s</text>",
            (left + right) / 2.0,
            HEIGHT - 10.0,
            self.axis,
            (TOP + bottom) / 2.0,
            (TOP + bottom) / 2.0
        );
        for (index, (way, line)) in self.lines.iter().enumerate() {
            let colour = colour(*way);
            let path: Vec<String> = line
                .iter()
                .map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (a, b) in line {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                    x(*a),
                    y(*b)
                );
            }
            let (from, at) = (right + 14.0, TOP + 14.0 + 20.0 * index as f64);
            let _ = writeln!(
                svg,
                "<line x1=\"{from}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\">{}</text>",
                from + 20.0,
                from + 26.0,
                at + 4.0,
                way.name()
            );
        }
        svg + "</svg>\n"
    }
}

/// Told apart also by those who see colours differently (Okabe and Ito's palette).
fn colour(way: Way) -> &'static str {
    match way {
        Way::Cubic => "#999999",
        Way::Bbr => "#e69f00",
        Way::Relay => "#0072b2",
        Way::Tpo => "#d55e00",
    }
}

/// A step of 1, 2 or 5 times a power of ten that makes four to ten marks, and the first mark that
/// is not below `largest`.
fn axis(largest: f64) -> (f64, f64) {
    let largest = if largest > 0.0 { largest } else { 1.0 };
    let power = 10f64.powf((largest / 10.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|times| times * power)
        .into_iter()
        .find(|step| largest / step <= 10.0);
    let step = step.expect("ten times the power of ten below a tenth of the largest is enough");
    (step, (largest / step - 1e-9).ceil() * step)
}

fn marks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    let count = (end / step).round() as u32;
    // Rid of what binary fractions leave behind: no axis of ours has finer steps.
    (0..=count).map(move |index| (f64::from(index) * step * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan;
    use crate::bench::report::Figures;

    #[test]
    fn axes_have_round_steps_and_hold_the_largest() {
        assert_eq!(axis(93.0), (10.0, 100.0));
        assert_eq!(axis(5.0), (0.5, 5.0));
        assert_eq!(axis(600.0), (100.0, 600.0));
        assert_eq!(axis(0.0).1, 1.0);
        assert_eq!(marks(0.1, 0.3).collect::<Vec<_>>(), [0.0, 0.1, 0.2, 0.3]);
    }

    #[test]
    fn a_grid_makes_a_plot_for_each_rate_and_round_trip_and_for_each_rate_and_loss() {
        let links = plan::grid();
        let record = |link, way, down| {
            let mut figures = Figures::new();
            figures.set("down_mbit", down);
            Record {
                link,
                way,
                run: 0,
                figures,
                failed: None,
            }
        };
        let mut records: Vec<Record> = (0..links.len())
            .map(|link| record(link, Way::Tpo, 18.0))
            .collect();
        // A way with one point has no line.
        records.push(record(0, Way::Bbr, 17.0));
        let plots = plots(&links, &records);
        // Three rates by four round trips, three rates by five losses, and the gigabit over its two
        // losses.
        assert_eq!(plots.len(), 12 + 15 + 1);
        let (name, svg) = &plots[0];
        assert_eq!(name, "loss-20mbit-20ms.svg");
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(svg.contains(">tpo</text>") && !svg.contains("direct"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
