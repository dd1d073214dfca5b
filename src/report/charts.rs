//! Charts as SVG, in the colours of the page they stand in.

use plotters::prelude::*;

use super::curves::Point;
use crate::number::significant;

/// A colour of the page, by the name of its CSS variable: the page decides what it is, in light and in dark.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Ink {
    Text,
    Grid,
    /// The main curve, and its faint raw form.
    Main,
    Faint,
    Dot,
    Minus,
    Zero,
    Plus,
    /// One of several runs, below [`RUNS`].
    Run(usize),
}

/// The CSS variables of [`Ink::Run`].
const OF_RUNS: [&str; 6] = ["run0", "run1", "run2", "run3", "run4", "run5"];

/// Runs that a chart has colours for.
pub(super) const RUNS: usize = OF_RUNS.len();

/// The CSS variables of all others.
const INKS: [(Ink, &str); 8] = [
    (Ink::Text, "muted"),
    (Ink::Grid, "grid"),
    (Ink::Main, "main"),
    (Ink::Faint, "faint"),
    (Ink::Dot, "dot"),
    (Ink::Minus, "minus"),
    (Ink::Zero, "zero"),
    (Ink::Plus, "plus"),
];

impl Ink {
    fn all() -> impl Iterator<Item = (Ink, &'static str)> {
        INKS.into_iter().chain(OF_RUNS.into_iter().enumerate().map(|(i, name)| (Ink::Run(i), name)))
    }

    /// A stand-in that `finished` replaces; nothing else in a chart has these colours.
    fn color(self) -> RGBColor {
        let place = Ink::all().position(|(ink, _)| ink == self).expect("a colour of the page");
        RGBColor(1, 0, place as u8)
    }
}

/// One drawn series.
pub(super) enum Series {
    Line(Ink, u32, Vec<Point>),
    Dots(Ink, Vec<Point>),
    /// The space between two curves with the same steps.
    Band(Ink, Vec<(f64, f64, f64)>),
}

/// A chart over the steps of a run.
#[derive(Default)]
pub(super) struct Chart {
    pub title: &'static str,
    pub unit: String,
    /// CSS variables and what is drawn in them.
    pub legend: Vec<(&'static str, &'static str)>,
    pub series: Vec<Series>,
    /// The vertical axis starts at zero.
    pub from_zero: bool,
    /// Percent on the vertical axis.
    pub percent: bool,
    /// Where the vertical axis ends; lines beyond it are cut off.
    pub top: Option<f64>,
}

/// What several curves have in common at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Band {
    pub step: f64,
    pub low: f64,
    pub mean: f64,
    pub high: f64,
}

/// Mean and range of several curves, cut off at `top`: an `<svg>` element in the colours `main` and `faint` of its page.
pub(crate) fn band_chart(bands: &[Band], top: Option<f64>) -> Option<String> {
    let most = |x: f64| top.map_or(x, |top| x.min(top));
    let range = bands.iter().map(|b| (b.step, most(b.low), most(b.high))).collect();
    let mean = bands.iter().map(|b| (b.step, b.mean)).collect();
    let series = vec![Series::Band(Ink::Faint, range), Series::Line(Ink::Main, 2, mean)];
    Chart { series, top, ..Chart::default() }.svg((440, 270))
}

/// The drawing library knows whole pixels only: smooth lines are drawn on a finer grid.
const FINE: u32 = 4;

impl Chart {
    /// The `<svg>` element of that size, which the page scales to the room there is; `None` without anything to show.
    pub fn svg(&self, size: (u32, u32)) -> Option<String> {
        let (x_low, x_high) = range(self.values().map(|p| p.0))?;
        let x_low = if x_low > 0.0 && x_low < 0.05 * x_high { 0.0 } else { x_low };
        let x_high = if x_high > x_low { x_high } else { x_low + 1.0 };
        let (low, high) = range(self.values().map(|p| p.1))?;
        let low = if self.from_zero { low.min(0.0) } else { low };
        let high = self.top.filter(|top| *top > low).unwrap_or(high);
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(1e-9) };
        let bottom = if self.from_zero && low == 0.0 { 0.0 } else { low - margin };
        // Bands fill their range exactly.
        let bands = self.series.iter().any(|s| matches!(s, Series::Band(..)));
        let top = if bands { high } else { high + margin };
        let mut text = String::new();
        // Drawing into memory fails only when a font is missing, and SVG uses the reader's fonts.
        self.draw(&mut text, size, x_low..x_high, bottom..top).ok()?;
        Some(finished(&text))
    }

    fn values(&self) -> impl Iterator<Item = Point> {
        self.series.iter().flat_map(|s| -> Box<dyn Iterator<Item = Point> + '_> {
            match s {
                Series::Line(_, _, points) | Series::Dots(_, points) => Box::new(points.iter().copied()),
                Series::Band(_, points) => Box::new(points.iter().flat_map(|&(x, a, b)| [(x, a), (x, b)])),
            }
        })
    }

    fn draw(
        &self,
        text: &mut String,
        size: (u32, u32),
        x: std::ops::Range<f64>,
        y: std::ops::Range<f64>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let size = (size.0 * FINE, size.1 * FINE);
        let root = SVGBackend::with_string(text, size).into_drawing_area();
        let top = y.end;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * FINE)
            .margin_right(22 * FINE)
            .x_label_area_size(26 * FINE)
            .y_label_area_size(54 * FINE)
            .build_cartesian_2d(x, y)?;
        let color = Ink::Text.color();
        let style = || TextStyle::from(("sans-serif", 14 * FINE)).color(&color);
        let percent = self.percent;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.color().stroke_width(FINE))
            .axis_style(Ink::Grid.color().stroke_width(FINE))
            .set_all_tick_mark_size(4 * FINE)
            .x_labels((size.0 / (110 * FINE)) as usize)
            .y_labels(5)
            .x_label_style(style())
            .y_label_style(style())
            .x_label_formatter(&|x| step(*x))
            .y_label_formatter(&|y| match percent {
                true => format!("{} %", significant(100.0 * y, 3)),
                false => significant(*y, 3),
            })
            .draw()?;
        for series in &self.series {
            match series {
                Series::Line(ink, width, points) => {
                    let style = ink.color().stroke_width(*width * FINE);
                    chart.draw_series(cut(points, top).into_iter().map(|p| PathElement::new(p, style)))?;
                }
                Series::Dots(ink, points) => {
                    let dots = points
                        .iter()
                        .filter(|p| p.1 <= top)
                        .map(|p| Circle::new(*p, 4 * FINE, ink.color().filled()));
                    chart.draw_series(dots)?;
                }
                Series::Band(ink, points) => {
                    let upper = points.iter().map(|p| (p.0, p.2));
                    let lower = points.iter().rev().map(|p| (p.0, p.1));
                    let outline: Vec<Point> = upper.chain(lower).collect();
                    chart.draw_series(std::iter::once(Polygon::new(outline, ink.color())))?;
                }
            }
        }
        root.present()?;
        Ok(())
    }
}

/// The pieces of a line that lie at or below `top`.
fn cut(points: &[Point], top: f64) -> Vec<Vec<Point>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut before: Option<Point> = None;
    for &(x, y) in points {
        if let Some((x0, y0)) = before
            && (y0 > top) != (y > top)
        {
            piece.push((x0 + (x - x0) * (top - y0) / (y - y0), top));
        }
        if y <= top {
            piece.push((x, y));
        } else if !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
        }
        before = Some((x, y));
    }
    pieces.push(piece);
    pieces.retain(|p| !p.is_empty());
    pieces
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut found: Option<(f64, f64)> = None;
    for v in values.filter(|v| v.is_finite()) {
        let (low, high) = found.unwrap_or((v, v));
        found = Some((low.min(v), high.max(v)));
    }
    found
}

/// 12500 as `12.5k`.
fn step(x: f64) -> String {
    match x.abs() {
        a if a >= 1e6 => format!("{}M", significant(x / 1e6, 3)),
        a if a >= 1e4 => format!("{}k", significant(x / 1e3, 3)),
        _ => significant(x, 4),
    }
}

/// Scales with the page and takes its colours.
fn finished(svg: &str) -> String {
    let start = svg.find("viewBox").unwrap_or(0);
    let mut out = format!("<svg {}", &svg[start..]);
    for (ink, variable) in Ink::all() {
        let RGBColor(r, g, b) = ink.color();
        let color = format!("#{r:02X}{g:02X}{b:02X}");
        for property in ["fill", "stroke"] {
            let old = format!("{property}=\"{color}\"");
            out = out.replace(&old, &format!("style=\"{property}:var(--{variable})\""));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(series: Vec<Series>) -> Option<String> {
        Chart { series, ..Chart::default() }.svg((520, 300))
    }

    #[test]
    fn lines_are_cut_where_they_cross_the_top() {
        let points = [(0.0, 4.0), (2.0, 2.0), (3.0, 1.0), (4.0, 5.0), (5.0, 5.0), (6.0, 1.0)];
        let pieces = cut(&points, 3.0);
        assert_eq!(pieces[0], [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.5, 3.0)]);
        assert_eq!(pieces[1..], [vec![(5.5, 3.0), (6.0, 1.0)]]);
        assert!(cut(&[(0.0, 9.0)], 3.0).is_empty());
    }

    #[test]
    fn colours_are_left_to_the_page() {
        let line = Series::Line(Ink::Main, 2, vec![(0.0, 1.0), (10.0, 3.0), (20.0, 2.0)]);
        let band = Series::Band(Ink::Zero, vec![(0.0, 0.0, 0.5), (20.0, 0.1, 0.7)]);
        let svg = svg(vec![band, line, Series::Dots(Ink::Dot, vec![(5.0, 2.0)])]).unwrap();
        assert!(svg.starts_with("<svg viewBox=\"0 0 2080 1200\"") && svg.trim_end().ends_with("</svg>"));
        for found in
            ["stroke:var(--main)", "fill:var(--zero)", "fill:var(--dot)", "fill:var(--muted)", "<polyline"]
        {
            assert!(svg.contains(found), "{found}");
        }
        assert!(!svg.contains("#0100"), "a stand-in was left");
    }

    #[test]
    fn degenerate_data_is_no_problem() {
        assert!(svg(vec![]).is_none());
        assert!(svg(vec![Series::Line(Ink::Main, 2, vec![])]).is_none());
        assert!(svg(vec![Series::Line(Ink::Main, 2, vec![(3.0, 1.0)])]).is_some());
        assert!(svg(vec![Series::Line(Ink::Main, 2, vec![(3.0, 0.0), (4.0, 0.0)])]).is_some());
        let wide = vec![(0.0, -1e300), (1e18, 1e300)];
        assert!(svg(vec![Series::Line(Ink::Main, 2, wide)]).is_some());
    }

    #[test]
    fn steps_are_short() {
        assert_eq!([step(0.0), step(2500.0), step(12_500.0), step(2e6)], ["0", "2500", "12.5k", "2M"]);
    }
}
