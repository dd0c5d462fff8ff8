use super::*;

#[test]
fn ticks_are_round_and_reach_the_largest_value() {
    assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    assert_eq!(ticks(2.9), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
    for max in [1e-9, 0.3, 1.0, 7.0, 99.0, 12_345.0, 1e12] {
        let ticks = ticks(max);
        let (last, before) = (ticks[ticks.len() - 1], ticks[ticks.len() - 2]);
        assert!(
            (3..=7).contains(&ticks.len()) && before < max && last >= max * (1.0 - 1e-9),
            "{max}: {ticks:?}"
        );
    }
    for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(ticks(odd), [0.0, 1.0]);
    }
}

#[test]
fn numbers_on_an_axis_are_short() {
    let labels = [0.0, 0.25, 100.0, 12_500.0, 2_000_000.0].map(tick_label);
    assert_eq!(labels, ["0", "0.25", "100", "12.5k", "2M"]);
}

#[test]
fn texts_are_escaped_and_coordinates_finite() {
    let mut drawing = Drawing::new(10.0, 10.0, "a \"b\"");
    drawing.text("x", (f64::NAN, f64::INFINITY), Anchor::Start, "</text><script>");
    drawing.rect("x", (0.0, 0.0), (-5.0, 1.0), "<&>");
    let svg = drawing.inline();
    assert!(!svg.contains("<script>") && !svg.contains("NaN") && !svg.contains("inf") && !svg.contains("-5"));
    assert!(svg.contains("&lt;/text&gt;&lt;script&gt;") && svg.contains("aria-label=\"a &quot;b&quot;\""));
}

#[test]
fn a_value_outside_the_scale_stays_in_the_panel() {
    let panel = Panel {
        x: (10.0, 20.0),
        y: (0.0, 100.0),
        x_values: (0.0, 1.0),
        y_values: (5.0, 5.0),
    };
    assert_eq!(
        (panel.x_of(-3.0), panel.x_of(0.5), panel.x_of(9.0)),
        (10.0, 15.0, 20.0)
    );
    assert_eq!(panel.y_of(5.0), 50.0);
}
