use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::Cost;

use super::*;

fn run(status: RunStatus, ending: Option<RunStatus>) -> RunView {
    RunView {
        run: RunId::new("r").unwrap(),
        name: String::new(),
        status,
        reason: None,
        cycle: Cycle(0),
        stages: Vec::new(),
        cost: Cost::default(),
        report: None,
        adapter: None,
        submitted_at_ms: 0,
        ending,
    }
}

#[test]
fn a_cancellation_says_what_it_came_to() {
    use RunStatus::{BudgetSpent, Cancelled, Passed, Running};
    let open = || run(Running, None);
    let ending = |status| run(Running, Some(status));
    let cases = [
        (open(), ending(Cancelled), "r is being cancelled"),
        (
            ending(Cancelled),
            ending(Cancelled),
            "r is already being cancelled",
        ),
        (open(), run(Cancelled, None), "r was cancelled"),
        (
            ending(BudgetSpent),
            ending(BudgetSpent),
            "r is ending already: budget spent",
        ),
        (
            run(Passed, None),
            run(Passed, None),
            "r had ended already: passed",
        ),
        (
            run(Cancelled, None),
            run(Cancelled, None),
            "r had ended already: cancelled",
        ),
        (open(), run(Passed, None), "r has just ended: passed"),
    ];
    for (before, after, words) in cases {
        let said = cancelled(&before, &after);
        assert!(said.starts_with(words), "`{words}` is not in `{said}`");
    }
}
