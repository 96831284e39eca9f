//! `vfiod devices`: the device models and their options.

use std::fmt::Write;

use vfiod_config::{ModelInfo, Models};

use crate::output;

/// Runs `vfiod devices`.
pub(crate) fn list(models: &Models, json: bool) -> anyhow::Result<()> {
    let (models, parents): (Vec<_>, Vec<_>) =
        (models.models().collect(), models.parents().collect());
    if json {
        return output::print_json(&serde_json::json!({ "models": models, "parents": parents }));
    }
    let mut text = String::new();
    describe(&mut text, &models);
    text.push_str("\nParents of mediated devices ([parent.NAME] in a configuration file):\n\n");
    describe(&mut text, &parents);
    output::print(&text)
}

fn describe(text: &mut String, models: &[&ModelInfo]) {
    for model in models {
        let _ = writeln!(text, "{}\n    {}", model.name, model.summary);
        for option in &model.options {
            let _ = writeln!(text, "    {} = {}", option.name, option.values);
            let _ = writeln!(text, "        {} [default: {}]", option.summary, option.default);
        }
        for operation in &model.operations {
            let _ = writeln!(text, "    operation {}: {}", operation.name, operation.summary);
            for argument in &operation.arguments {
                let _ = writeln!(text, "        {} = {}", argument.name, argument.values);
                let _ = writeln!(
                    text,
                    "            {} [default: {}]",
                    argument.summary, argument.default
                );
            }
        }
    }
}
