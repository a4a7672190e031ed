//! `CAIRN_*` variables that are none of ours: most likely somebody has typed one wrong, and would wait in vain for
//! its effect.

use cairn_runtime::config::ENV_PREFIX;

use super::complaint::distance;
use super::{COORDINATOR_ENV, Config};
use crate::failure::Failure;

/// Variables that are no settings.
const OTHERS: [&str; 4] = [COORDINATOR_ENV, "CAIRN_CONFIG", "CAIRN_RUNTIME_DIR", "CAIRN_BIN"];
/// So many letters may differ between a variable and the one that was meant.
const CLOSE: usize = 2;
/// Ends of variables that orchestrators set for every service whose name begins with `cairn`.
const FOREIGN: [&str; 8] =
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT", "_TCP", "_TCP_ADDR", "_TCP_PORT", "_TCP_PROTO", "_NAME"];

/// Looks at the names of variables. One that is close to a setting is an error that names it; the sentences that come
/// back are about others, which are passed over. Unknown keys in names with `__` are found with the settings.
pub fn check_variables(names: impl IntoIterator<Item = String>) -> Result<Vec<String>, Failure> {
    let known: Vec<String> =
        settings().into_iter().chain(OTHERS.iter().map(|&name| name.to_owned())).collect();
    let mut sentences = Vec::new();
    for name in names {
        let rest = name.strip_prefix(ENV_PREFIX);
        if rest.is_none_or(|rest| rest.contains("__")) || known.contains(&name) {
            continue;
        }
        let plain = |name: &str| name.replace("__", "_");
        let nearest = known.iter().map(|known| (distance(&plain(known), &plain(&name)), known)).min();
        match nearest {
            Some((steps, meant)) if steps <= CLOSE => {
                return Err(Failure::usage(format!("variable {name}"), "there is no such setting")
                    .next(format!("{meant} was perhaps meant: two underscores between section and key")));
            }
            _ if is_foreign(&name) => {}
            _ => sentences.push(format!("the variable {name} is not known and has no effect")),
        }
    }
    Ok(sentences)
}

fn is_foreign(name: &str) -> bool {
    FOREIGN.iter().any(|end| name.ends_with(end)) || name.contains("_PORT_")
}

/// The variables of all settings, such as `CAIRN_CLIENT__MEMORY`.
fn settings() -> Vec<String> {
    let config = serde_json::to_value(Config::default()).unwrap_or_default();
    let sections = config.as_object().into_iter().flatten();
    let keys = sections.flat_map(|(section, keys)| {
        let keys = keys.as_object().into_iter().flatten();
        keys.map(move |(key, _)| format!("{ENV_PREFIX}{section}__{key}").to_uppercase())
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str) -> Result<Vec<String>, Failure> {
        check_variables([name.to_owned()])
    }

    #[test]
    fn a_variable_that_is_close_to_a_setting_is_refused_with_that_setting() {
        for (wrong, meant) in [
            ("CAIRN_CLIENT_MEMORY", "CAIRN_CLIENT__MEMORY"),
            ("CAIRN_MOUNT_READ_ONLY", "CAIRN_MOUNT__READ_ONLY"),
            ("CAIRN_CORDINATOR", "CAIRN_COORDINATOR"),
            ("CAIRN_LOG_LEVL", "CAIRN_LOG__LEVEL"),
        ] {
            let failure = check(wrong).unwrap_err();
            assert!(failure.to_string().contains(meant) && failure.what.contains(wrong), "{failure}");
        }
    }

    #[test]
    fn others_are_told_unless_they_are_known_or_an_orchestrators() {
        for fine in ["CAIRN_CONFIG", "CAIRN_CLIENT__MEMORY", "CAIRN_CLIENT__NO_SUCH", "PATH", "CAIRN_PORT"] {
            assert_eq!(check(fine), Ok(Vec::new()), "{fine}");
        }
        for foreign in ["CAIRN_COORDINATOR_SERVICE_HOST", "CAIRN_COORDINATOR_PORT_7070_TCP_ADDR"] {
            assert_eq!(check(foreign), Ok(Vec::new()), "{foreign}");
        }
        assert_eq!(check("CAIRN_FAVOURITE_COLOUR").unwrap().len(), 1);
    }
}
