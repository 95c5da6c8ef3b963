//! Horizontal bars: for each row one bar of each group, on one scale for each group, so that a fast group does
//! not flatten a slow one.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::peer::Error;

/// What is drawn.
pub struct Bars {
    pub title: String,
    pub unit: String,
    /// What the columns are.
    pub groups: Vec<String>,
    /// Name, and the value in each group.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

const WIDTH: i32 = 960;
const NAMES_WIDTH: i32 = 150;
const TOP: i32 = 78;
const ROW: i32 = 30;
const BAR: i32 = 18;
const GAP: i32 = 24;
/// Behind the longest bar, for its number.
const NUMBER_WIDTH: i32 = 58;
const FONT: &str = "sans-serif";
const OURS: RGBColor = RGBColor(0x1f, 0x4e, 0x9c);
const THEIRS: RGBColor = RGBColor(0x9a, 0xa8, 0xb8);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// The text of an SVG file.
pub fn bars_svg(bars: &Bars) -> Result<String, Error> {
    let mut svg = String::new();
    let height = TOP + ROW * bars.rows.len() as i32 + 16;
    let root = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
    let drawn = draw(&root, bars).and_then(|()| root.present().map_err(|error| error.to_string()));
    drop(root);
    drawn.map_err(|error| format!("cannot draw {:?}: {error}", bars.title))?;
    Ok(svg)
}

fn draw(root: &DrawingArea<SVGBackend<'_>, Shift>, bars: &Bars) -> Result<(), String> {
    root.fill(&WHITE).map_err(|error| error.to_string())?;
    let text = |said: &str, at: (i32, i32), size: i32, to: HPos| {
        let style = (FONT, size).into_font().color(&INK).pos(Pos::new(to, VPos::Center));
        root.draw(&Text::new(said.to_owned(), at, style)).map_err(|error| error.to_string())
    };
    text(&format!("{}: {}", bars.title, bars.unit), (WIDTH / 2, 24), 19, HPos::Center)?;
    let middle = |row: usize| TOP + ROW * row as i32 + ROW / 2;
    for (row, (name, _)) in bars.rows.iter().enumerate() {
        text(name, (NAMES_WIDTH - 10, middle(row)), 14, HPos::Right)?;
    }
    let column = (WIDTH - NAMES_WIDTH) / bars.groups.len().max(1) as i32;
    for (group, told) in bars.groups.iter().enumerate() {
        let left = NAMES_WIDTH + column * group as i32;
        text(told, (left, TOP - 16), 15, HPos::Left)?;
        let values = bars.rows.iter().filter_map(|(_, values)| values[group]);
        let most = values.fold(0.0, f64::max).max(1e-9);
        let longest = f64::from(column - GAP - NUMBER_WIDTH);
        for (row, (name, values)) in bars.rows.iter().enumerate() {
            let Some(value) = values[group] else {
                text("-", (left, middle(row)), 13, HPos::Left)?;
                continue;
            };
            let end = left + (value / most * longest).round().max(1.0) as i32;
            let colour = if name == "uringlog" { OURS } else { THEIRS };
            let corners = [(left, middle(row) - BAR / 2), (end, middle(row) + BAR / 2)];
            root.draw(&Rectangle::new(corners, colour.filled()))
                .map_err(|error| error.to_string())?;
            text(&told_value(value), (end + 6, middle(row)), 13, HPos::Left)?;
        }
    }
    Ok(())
}

fn told_value(value: f64) -> String {
    match value.round() {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 1e3 => format!("{} {:03}", v as u64 / 1000, v as u64 % 1000),
        v => format!("{v:.0}"),
    }
}
