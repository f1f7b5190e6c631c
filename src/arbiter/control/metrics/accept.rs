//! The `Accept` field of a request (RFC 9110, section 12.5.1), as far as scrapers use it. Pure.

/// The versions of the text formats that are sent.
const VERSIONS: [&str; 2] = ["0.0.4", "1.0.0"];

/// Returns how much a client wants this media type, from 0 to 1; `None` if it does not name it. Ranges
/// such as `*/*` do not name it.
pub(super) fn quality(field: &[u8], media_type: &str) -> Option<f32> {
    let field = std::str::from_utf8(field).unwrap_or_default();
    let qualities = field.split(',').filter_map(|range| quality_of_range(range, media_type));
    qualities.fold(None, |best, quality| Some(quality.max(best.unwrap_or(0.0))))
}

fn quality_of_range(range: &str, media_type: &str) -> Option<f32> {
    let mut parts = range.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(media_type) {
        return None;
    }
    let mut quality = 1.0;
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim_matches('"');
        if name.eq_ignore_ascii_case("version") && !VERSIONS.contains(&value) {
            return None;
        }
        if name.eq_ignore_ascii_case("q") {
            quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        }
    }
    Some(quality)
}
