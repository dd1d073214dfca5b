//! What a run left behind: `trainer.json` of a checkpoint, `metrics.jsonl`, `report.json`; and the plan of a sweep. A diary that
//! goes on from a step holds what it held up to there.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::report;
use ternlm::sweep::Plan;
use ternlm::train::{METRICS, MetricsLog, Record, checkpoint, read_metrics};
use ternlm_fuzz::{file, folder, mutate_json, parts};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [trainer, metrics, summary, plan] = parts(data);
    file(checkpoint::TRAINER, trainer);
    checkpoint::progress(folder()).ok();
    let diary = file(METRICS, metrics);
    file(report::JSON, summary);
    report::rewrite(folder()).ok();
    if let Ok(records) = read_metrics(&diary) {
        let step = records.get(records.len() / 2).map_or(0, Record::step);
        MetricsLog::resume(&diary, step).expect("what was read");
        let kept: Vec<&Record> = records.iter().filter(|record| record.step() <= step).collect();
        // As texts: NaN is not NaN.
        let again = read_metrics(&diary).expect("what was kept");
        assert_eq!(format!("{again:?}"), format!("{kept:?}"));
    }
    if let Ok(plan) = Plan::read(&file("sweep.toml", plan)) {
        for run in plan.runs() {
            let folder = run.folder();
            assert!(folder.is_relative() && folder.components().count() == 3, "{folder:?}");
        }
    }
});
