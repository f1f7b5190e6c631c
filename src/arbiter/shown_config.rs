//! The settings that are in use, as the control interface shows them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::generation::{MasterContext, PoolGeneration};
use super::transitions::Transitions;
use crate::settings::ShownValue;

/// The settings as JSON, kept until a reload changes them.
#[derive(Default)]
pub(super) struct ShownConfig {
    /// The newest generation, and whether it is uncommitted.
    of: Option<(u32, bool)>,
    json: Arc<[u8]>,
}

impl ShownConfig {
    /// Returns the settings of the generation that is committed.
    pub(super) fn json(&mut self, transitions: &Transitions<'_>) -> Arc<[u8]> {
        let (state, transaction) = (&transitions.state, transitions.reload.transaction());
        let of = Some((state.pools.generation_number(), transaction.is_some()));
        if self.of != of {
            self.of = of;
            let present = state.pools.present();
            let json = match transaction {
                None => render(&state.context, present.map(|pool| pool.generation())),
                Some(transaction) => {
                    let removed = present.filter(|pool| transaction.removes(pool.name()));
                    let removed = removed.map(|pool| pool.generation());
                    let generations = transaction.previous_generations().chain(removed);
                    render(transaction.previous_context(), generations)
                }
            };
            self.json = format!("{json}\n").into_bytes().into();
        }
        Arc::clone(&self.json)
    }
}

/// Returns all values of the master, and for each pool those that differ.
fn render<'g, 'a: 'g>(
    context: &MasterContext,
    generations: impl Iterator<Item = &'g PoolGeneration<'a>>,
) -> Value {
    let mut settings = Vec::new();
    let mut add = |pool: Option<&str>, values: Vec<ShownValue>| {
        settings.extend(values.into_iter().map(|ShownValue { key, value, source }| {
            json!({ "pool": pool, "key": key, "value": value, "source": source })
        }));
    };
    if context.has_named_pools {
        add(None, context.settings.shown_values());
        for generation in generations {
            let spec = &generation.spec;
            add(Some(&spec.name), spec.settings.shown_overrides(&context.settings));
        }
    } else {
        generations.for_each(|generation| add(None, generation.spec.settings.shown_values()));
    }
    json!({ "settings": settings })
}
