//! `cairn explain`: what a health code means and what to do. Needs no cluster.

use cairn_proto::health::Condition;
use serde_json::{Value, json};

use super::Tool;
use crate::args::ExplainArgs;
use crate::failure::Failure;
use crate::output::{BAD, STRONG, WARN};

pub(super) fn explain(tool: &Tool, args: &ExplainArgs) -> Result<(), Failure> {
    let conditions: Vec<Condition> = match &args.code {
        None => Condition::ALL.to_vec(),
        Some(code) => vec![Condition::from_code(code).ok_or_else(|| unknown(code))?],
    };
    if tool.output.json {
        let all: Vec<Value> = conditions.iter().map(|&condition| as_json(condition)).collect();
        return match (&args.code, all.as_slice()) {
            (Some(_), [one]) => tool.output.json(one),
            _ => tool.output.json(&all),
        };
    }
    for (index, condition) in conditions.iter().enumerate() {
        if index > 0 {
            tool.output.say("");
        }
        let (style, word) = if condition.is_error() { (BAD, "error") } else { (WARN, "warning") };
        tool.output.say(format!(
            "{} ({})",
            tool.output.paint(STRONG, condition.code()),
            tool.output.paint(style, word)
        ));
        tool.output.say(format!("  {}", condition.meaning()));
        tool.output.say(format!("  {}", condition.remedy()));
    }
    Ok(())
}

fn unknown(code: &str) -> Failure {
    let known: Vec<_> = Condition::ALL.iter().map(|condition| condition.code()).collect();
    Failure::usage(format!("explain {code:?}"), "there is no such health code")
        .next(format!("there are {}", known.join(", ")))
}

fn as_json(condition: Condition) -> Value {
    json!({
        "code": condition.code(),
        "error": condition.is_error(),
        "meaning": condition.meaning(),
        "remedy": condition.remedy(),
    })
}
