//! The few marks that the plots are made of, as SVG elements.
//!
//! Invariant: every text is escaped and every coordinate is finite, whatever the report holds; colours are classes
//! that the page and the standalone file both define, so that plots follow light and dark.

/// The classes of the marks, for light and dark.
pub(super) const STYLE: &str = include_str!("chart.css");

/// A drawing in user units, one unit a CSS pixel at full size.
#[derive(Debug)]
pub(super) struct Drawing {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

/// Where a text stands relative to its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    /// The text begins there.
    Start,
    /// The text's middle is there.
    Middle,
    /// The text ends there.
    End,
}

impl Drawing {
    /// An empty drawing; `label` is what a screen reader says of it.
    pub(super) fn new(width: f64, height: f64, label: &str) -> Self {
        Self {
            width,
            height,
            label: label.to_owned(),
            body: String::new(),
        }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.body.push_str(&format!(
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n"
        ));
    }

    /// A line through all points.
    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{},{}", number(*x), number(*y)))
            .collect();
        self.body.push_str(&format!(
            "<polyline class=\"{class}\" points=\"{}\"/>\n",
            points.join(" ")
        ));
    }

    /// A filled rectangle that names itself when pointed at.
    pub(super) fn rect(&mut self, class: &str, corner: (f64, f64), size: (f64, f64), title: &str) {
        let [x, y, width, height] = [corner.0, corner.1, size.0.max(0.0), size.1.max(0.0)].map(number);
        self.body.push_str(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\">{}</rect>\n",
            title_element(title)
        ));
    }

    /// A dot that names itself when pointed at.
    pub(super) fn dot(&mut self, class: &str, at: (f64, f64), title: &str) {
        let [x, y] = [at.0, at.1].map(number);
        self.body.push_str(&format!(
            "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"4.5\">{}</circle>\n",
            title_element(title)
        ));
    }

    /// A text.
    pub(super) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let [x, y] = [at.0, at.1].map(number);
        let text = escape(text);
        self.body.push_str(&format!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>\n"
        ));
    }

    /// The drawing for a page that has [`STYLE`] already.
    pub(super) fn inline(&self) -> String {
        self.element("", "")
    }

    /// The drawing as a file of its own.
    pub(super) fn standalone(&self) -> String {
        self.element(
            " xmlns=\"http://www.w3.org/2000/svg\"",
            &format!("<style>{STYLE}</style>\n"),
        )
    }

    fn element(&self, namespace: &str, style: &str) -> String {
        let (width, height) = (number(self.width), number(self.height));
        format!(
            "<svg{namespace} class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n{style}{}</svg>\n",
            escape(&self.label),
            self.body
        )
    }
}

fn title_element(title: &str) -> String {
    if title.is_empty() {
        String::new()
    } else {
        format!("<title>{}</title>", escape(title))
    }
}

/// A coordinate with one decimal; what is not finite becomes 0 rather than an invalid drawing.
fn number(value: f64) -> String {
    let text = format!("{:.1}", if value.is_finite() { value } else { 0.0 });
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A rectangle of the drawing with a scale on each axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    /// Left and right end.
    pub(super) x: (f64, f64),
    /// Top and bottom end.
    pub(super) y: (f64, f64),
    /// Values at the left and right end.
    pub(super) x_values: (f64, f64),
    /// Values at the bottom and top end.
    pub(super) y_values: (f64, f64),
}

impl Panel {
    /// Where `value` lies from left to right, held inside the panel.
    pub(super) fn x_of(&self, value: f64) -> f64 {
        scale(value, self.x_values, self.x)
    }

    /// Where `value` lies from bottom to top, held inside the panel.
    pub(super) fn y_of(&self, value: f64) -> f64 {
        scale(value, self.y_values, (self.y.1, self.y.0))
    }

    /// Horizontal grid lines at `ticks`, each with its number to the left.
    pub(super) fn grid(&self, drawing: &mut Drawing, ticks: &[f64]) {
        for tick in ticks {
            let y = self.y_of(*tick);
            drawing.line("grid", (self.x.0, y), (self.x.1, y));
            drawing.text("tick", (self.x.0 - 8.0, y + 4.0), Anchor::End, &tick_label(*tick));
        }
    }
}

fn scale(value: f64, values: (f64, f64), ends: (f64, f64)) -> f64 {
    let width = values.1 - values.0;
    let share = if width > 0.0 {
        ((value - values.0) / width).clamp(0.0, 1.0)
    } else {
        0.5
    };
    ends.0 + share * (ends.1 - ends.0)
}

/// Round numbers that divide 0 to `max` into three to six parts, the last at or above `max`.
pub(super) fn ticks(max: f64) -> Vec<f64> {
    if !max.is_finite() || max <= 0.0 {
        return vec![0.0, 1.0];
    }
    let power = 10f64.powf(max.log10().floor());
    let steps = [0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0].map(|step| step * power);
    let step = steps
        .into_iter()
        .find(|step| max / step <= 6.0)
        .unwrap_or(power * 5.0);
    let count = (max / step - 1e-9).ceil().clamp(1.0, 10.0) as u32;
    (0..=count).map(|index| f64::from(index) * step).collect()
}

/// A number for an axis: as many decimals as it needs, at most six.
pub(super) fn tick_label(value: f64) -> String {
    if value >= 1e6 {
        return format!("{}M", tick_label(value / 1e6));
    }
    if value >= 1e4 {
        return format!("{}k", tick_label(value / 1e3));
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
