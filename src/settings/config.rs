//! The settings of a program: those of the master and of each pool.

use std::path::Path;

use super::error::{SettingsError, Source};
use super::file::{ConfigFile, PoolSection};
use super::layer::ConfigLayer;
use super::schema::Settings;
use super::validate;

/// The name of the only pool, if no pool is configured by name.
const DEFAULT_POOL: &str = "default";

/// The settings of a program. Two are equal if their pools have equal names and settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// The settings of the master, and the defaults of all pools.
    pub master: Settings,
    /// The pools, at least one, each with all its settings.
    pub pools: Vec<Pool>,
    /// Whether pools are configured by name. If not, there is one, which the log does not name.
    pub has_named_pools: bool,
}

/// The settings of a pool. Options of the master are the same in all pools.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The name: 1 to 32 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// Where the pool is defined.
    pub source: Source,
    /// The settings.
    pub settings: Settings,
}

impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.settings == other.settings
    }
}

impl From<Settings> for Configuration {
    /// Creates a configuration of one pool.
    fn from(settings: Settings) -> Self {
        let pool = Pool {
            name: DEFAULT_POOL.to_owned(),
            source: Source::Default,
            settings: settings.clone(),
        };
        Self { master: settings, pools: vec![pool], has_named_pools: false }
    }
}

impl Configuration {
    /// Parses YAML. A key that is absent has its default. Errors and [`Settings::source`] name the text
    /// by `path`. `${env:NAME}` reads the environment of this process.
    ///
    /// # Errors
    /// The first error, with its line.
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let environment: Vec<_> = std::env::vars_os().collect();
        let file = ConfigFile::parse(text, path, &environment)?;
        Self::resolve(&Settings::default(), &file, &[], &[])
    }

    /// Merges all sources and validates the result. The precedence, lowest first: base, top level of
    /// the file, section of the pool, `layers` in their order. If `selected_pools` is not empty, drops
    /// all other pools.
    ///
    /// # Errors
    /// The first error.
    pub(crate) fn resolve(
        base: &Settings,
        file: &ConfigFile,
        layers: &[ConfigLayer],
        selected_pools: &[String],
    ) -> Result<Self, SettingsError> {
        let merge = |pool_layer: Option<&ConfigLayer>| {
            let mut settings = base.clone();
            let file_layers = [Some(&file.top_level), pool_layer].into_iter().flatten();
            file_layers.chain(layers).for_each(|layer| layer.apply(&mut settings));
            settings.provenance.files.clone_from(&file.summaries);
            settings
        };
        let mut configuration = Self::from(merge(None));
        if !file.pools.is_empty() {
            configuration.has_named_pools = true;
            let pools = file.pools.iter().map(|PoolSection { pool, source, layer }| Pool {
                name: pool.clone(),
                source: source.clone(),
                settings: merge(Some(layer)),
            });
            configuration.pools = pools.collect();
        }
        configuration.select_pools(selected_pools)?;
        for pool in &configuration.pools {
            validate::validate(&pool.settings)
                .map_err(|error| configuration.with_pool_name(pool, error))?;
        }
        Ok(configuration)
    }

    /// Returns whether no source sets this key in some pool.
    pub(crate) fn uses_default(&self, key: &str) -> bool {
        self.pools.iter().any(|pool| pool.settings.source(key).is_default())
    }

    /// Drops all pools but the selected ones, unless none is selected.
    fn select_pools(&mut self, selected: &[String]) -> Result<(), SettingsError> {
        if let Some(unknown) =
            selected.iter().find(|name| self.pools.iter().all(|p| p.name != **name))
        {
            let known: Vec<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(SettingsError::InvalidValue {
                source: Source::Flag { flag: "--pool".into() },
                key: "pool".into(),
                value: Some(unknown.clone()),
                reason: format!("is not a configured pool; available: {}", known.join(", ")),
            });
        }
        self.pools.retain(|pool| selected.is_empty() || selected.contains(&pool.name));
        Ok(())
    }

    /// Adds the name of the pool to an error, if pools have names.
    pub(crate) fn with_pool_name(&self, pool: &Pool, error: SettingsError) -> SettingsError {
        if !self.has_named_pools {
            return error;
        }
        SettingsError::InPool { pool: pool.name.clone(), error: Box::new(error) }
    }
}

/// Rejects an address that two pools bind.
///
/// # Errors
/// The first such address, and its source in both pools.
pub(crate) fn check_address_conflicts<'p>(
    pools: impl Iterator<Item = &'p Pool>,
) -> Result<(), SettingsError> {
    let mut bound: Vec<(&Pool, &super::Address)> = Vec::new();
    for pool in pools {
        for address in &pool.settings.bind {
            if let Some((other, _)) = bound.iter().find(|(_, known)| *known == address) {
                return Err(SettingsError::Conflict {
                    source: bind_source(pool),
                    key: "bind",
                    reason: format!(
                        "pool {:?} binds {address}, which pool {:?} already binds ({}): \
                         give each pool its own address",
                        pool.name,
                        other.name,
                        bind_source(other),
                    ),
                });
            }
        }
        bound.extend(pool.settings.bind.iter().map(|address| (pool, address)));
    }
    Ok(())
}

/// Returns the source of the pool's addresses, or of the pool if they are the default.
fn bind_source(pool: &Pool) -> Source {
    match pool.settings.source("bind") {
        source if source.is_default() => pool.source.clone(),
        explicit => explicit.clone(),
    }
}
