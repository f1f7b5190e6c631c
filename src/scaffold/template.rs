//! The files of a new crate. `@NAME@` is replaced by the name of the crate, `@OSTLER@` by the version or
//! path of its dependency on this crate.

/// What a new crate is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Template {
    /// An HTTP handler and a worker class of its own.
    #[default]
    Service,
    /// An axum router on the class `tokio`.
    Axum,
}

impl Template {
    /// Returns the template with this name.
    pub(super) fn find(name: &str) -> Option<Self> {
        match name {
            "service" => Some(Self::Service),
            "axum" => Some(Self::Axum),
            _ => None,
        }
    }

    /// Returns the paths of its files, and their contents.
    pub(super) fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Service => &SERVICE,
            Self::Axum => &AXUM,
        }
    }

    /// Returns what it contains, in words.
    pub(super) fn contents(self) -> &'static str {
        match self {
            Self::Service => "an app, a worker class of its own, settings and tests",
            Self::Axum => "an axum router, settings and tests",
        }
    }
}

const SERVICE: [(&str, &str); 9] = [
    ("Cargo.toml", include_str!("../../templates/manifest.toml")),
    (".gitignore", include_str!("../../templates/gitignore")),
    ("README.md", include_str!("../../templates/readme.md")),
    ("config/@NAME@.yaml", include_str!("../../templates/settings.yaml")),
    ("src/main.rs", include_str!("../../templates/main.rs")),
    ("src/app.rs", include_str!("../../templates/app.rs")),
    ("src/class.rs", include_str!("../../templates/class.rs")),
    ("tests/starts.rs", include_str!("../../templates/starts.rs")),
    ("tests/kit.rs", include_str!("../../templates/kit.rs")),
];

const AXUM: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("../../templates/axum/manifest.toml")),
    (".gitignore", include_str!("../../templates/gitignore")),
    ("README.md", include_str!("../../templates/axum/readme.md")),
    ("config/@NAME@.yaml", include_str!("../../templates/axum/settings.yaml")),
    ("src/main.rs", include_str!("../../templates/axum/main.rs")),
    ("tests/serves.rs", include_str!("../../templates/axum/serves.rs")),
];
