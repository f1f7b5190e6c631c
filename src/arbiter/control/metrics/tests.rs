//! The files for Prometheus and Grafana name metrics that exist.

use super::METRICS;

/// Returns the names of metrics in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices("ostler_").map(move |(at, _)| {
        let name = &text[at..];
        &name[..name.find(|c| !is_part(c)).unwrap_or(name.len())]
    })
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let rules = include_str!("../../../../config/prometheus/ostler.rules.yml");
    let dashboard = include_str!("../../../../config/grafana/ostler.json");
    serde_json::from_str::<serde_json::Value>(dashboard).expect("the dashboard is JSON");
    for text in [rules, dashboard] {
        assert!(names(text).count() > 10);
        for name in names(text) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
            let is_known = |name: &str| METRICS.iter().any(|metric| metric.name == name);
            assert!(is_known(name) || base.is_some_and(is_known), "there is no metric {name}");
        }
    }
}
