//! The settings of a whole program: the master's, and those of each pool.

use std::path::Path;

use super::error::{SettingsError, Source};
use super::file::ConfigFile;
use super::layer::ConfigLayer;
use super::schema::Settings;
use super::{dump, validate};

/// The name of the only pool, where nobody speaks of pools.
const DEFAULT_POOL: &str = "default";

/// The settings of a whole program. Two are equal if their pools have equal names and settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// What holds for the master, and for each pool that says nothing else.
    pub master: Settings,
    /// The pools, at least one, each with all its settings.
    pub pools: Vec<Pool>,
    /// Whether somebody speaks of pools. If not, there is one, and it is not named in the log.
    pub has_named_pools: bool,
}

/// The settings of a pool. What belongs to the master is the same in all.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name: 1 to 32 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// Where it was named.
    pub source: Source,
    /// Its settings.
    pub settings: Settings,
}

impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.settings == other.settings
    }
}

impl From<Settings> for Configuration {
    /// One pool.
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
    /// The defaults, with what a text of YAML says laid over them. `path` is the name that errors
    /// and [`Settings::source`] give to the text. `${env:NAME}` reads this process's environment.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let environment: Vec<_> = std::env::vars_os().collect();
        let file = ConfigFile::parse(text, path, &environment)?;
        Self::resolve(&Settings::default(), file, &[], &[])
    }

    /// The settings as YAML that loads back to an equal configuration: one line a value, with its
    /// source as a comment.
    pub fn to_yaml(&self) -> String {
        dump::dump_config(self)
    }

    /// Lays what a file says over a base, a pool's own keys over that, and the overlays over all,
    /// the strongest last; and checks the whole. Of several pools only the chosen ones are kept, if
    /// any are chosen.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn resolve(
        base: &Settings,
        file: ConfigFile,
        layers: &[ConfigLayer],
        chosen: &[String],
    ) -> Result<Self, SettingsError> {
        let ConfigFile { top_level: top, pools } = file;
        let resolve_layers = |pool_layer: Option<&ConfigLayer>| {
            let all_layers = [Some(&top), pool_layer].into_iter().flatten().chain(layers);
            Settings::apply_layers(base.clone(), all_layers)
        };
        let mut configuration = Self::from(resolve_layers(None)?);
        if !pools.is_empty() {
            configuration.has_named_pools = true;
            configuration.pools.clear();
            for section in pools {
                let settings = resolve_layers(Some(&section.layer))?;
                configuration.pools.push(Pool {
                    name: section.pool,
                    source: section.source,
                    settings,
                });
            }
        }
        configuration.select_pools(chosen)?;
        for pool in &configuration.pools {
            validate::validate(&pool.settings)
                .map_err(|error| configuration.with_pool_name(pool, error))?;
        }
        Ok(configuration)
    }

    /// Keeps these pools alone.
    fn select_pools(&mut self, chosen: &[String]) -> Result<(), SettingsError> {
        if let Some(unknown) =
            chosen.iter().find(|name| self.pools.iter().all(|p| p.name != **name))
        {
            let known: Vec<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(SettingsError::InvalidValue {
                source: Source::Flag { flag: "--pool".into() },
                key: "pool".into(),
                value: Some(unknown.clone()),
                reason: format!("is not a configured pool; available: {}", known.join(", ")),
            });
        }
        self.pools.retain(|pool| chosen.is_empty() || chosen.contains(&pool.name));
        Ok(())
    }

    /// An error with the pool in which it is one.
    pub(crate) fn with_pool_name(&self, pool: &Pool, error: SettingsError) -> SettingsError {
        if !self.has_named_pools {
            return error;
        }
        SettingsError::InPool { pool: pool.name.clone(), error: Box::new(error) }
    }
}

/// Refuses that two pools listen on one address.
///
/// # Errors
/// The first address that two want, and where each says so.
pub(crate) fn check_address_conflicts<'p>(
    pools: impl Iterator<Item = &'p Pool>,
) -> Result<(), SettingsError> {
    let mut bound: Vec<(&Pool, &super::Address)> = Vec::new();
    for pool in pools {
        for address in &pool.settings.bind {
            if let Some((other, _)) = bound.iter().find(|(_, known)| *known == address) {
                let why = format!(
                    "pool {:?} binds {address}, which pool {:?} already binds ({}): give each pool its own address",
                    pool.name,
                    other.name,
                    bind_source(other),
                );
                return Err(SettingsError::Conflict {
                    source: bind_source(pool),
                    key: "bind",
                    reason: why,
                });
            }
        }
        bound.extend(pool.settings.bind.iter().map(|address| (pool, address)));
    }
    Ok(())
}

/// Where a pool says, or fails to say, where it listens.
fn bind_source(pool: &Pool) -> Source {
    match pool.settings.source("bind") {
        Source::Default => pool.source.clone(),
        explicit @ (Source::File { .. } | Source::Env { .. } | Source::Flag { .. }) => {
            explicit.clone()
        }
    }
}
