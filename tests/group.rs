//! Trainings of several processes, in threads of this one: the same results, moments shared out, resumed by another number,
//! refused, come apart, gone.

mod common;

use common::lab::TINY;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use ternlm::Result;
use ternlm::config::{DistillConfig, MomentFormat, OptimizerKind, Recipe};
use ternlm::measure::Perplexity;
use ternlm::train::group::{Group, Link, Way, threads};
use ternlm::train::{
    self, Observer, Outcome, Record, Resume, Share, StepReport, Teaching, Together, Trainer, checkpoint,
};

/// A text, and the folder that runs go into.
struct Lab(tempfile::TempDir);

/// A run as `size` processes.
#[derive(Clone, Copy)]
struct Run {
    size: usize,
    way: Way,
    shard: bool,
}

const ONE: Run = Run { size: 1, way: Way::Fastest, shard: false };

#[derive(Debug, Default)]
struct Seen {
    losses: Vec<f64>,
    divergences: Vec<f64>,
    relations: Vec<f64>,
    validations: Vec<f64>,
}

impl Observer for Seen {
    fn stepped(&mut self, report: &StepReport, _: f64, _: bool) {
        self.losses.push(report.loss);
        self.divergences.extend(report.divergence);
        self.relations.extend(report.relations);
    }
    fn validated(&mut self, _: u64, measured: &Perplexity) {
        self.validations.push(measured.nll);
    }
    fn saved(&mut self, _: &Path) {}
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text: String =
            (0..4000).map(|i| ["ternary ", "weights ", "are ", "sums\n"][i * i % 7 % 4]).collect();
        fs::write(dir.path().join("text.txt"), text).unwrap();
        Self(dir)
    }

    fn recipe(&self) -> Recipe {
        let mut recipe: Recipe = toml::from_str(TINY).unwrap();
        recipe.data.train = vec![self.path("text.txt")];
        recipe.model.as_mut().unwrap().tie_embeddings = false;
        let t = &mut recipe.train;
        (t.steps, t.batch, t.weight_decay, t.warmup) = (10, 5, 0.1, 3);
        (t.log_every, t.eval_every, t.save_every) = (5, 5, 5);
        recipe
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn trainer(&self, recipe: Recipe, from: Option<&Path>, share: Share) -> Trainer {
        let resume = from.map(|run| Resume::open(&checkpoint::list(run).pop().unwrap(), false).unwrap());
        train::setup(recipe, resume.as_ref(), &self.path("cache"), share, &|_| {}).unwrap()
    }

    /// What each process of a run makes of `work`.
    fn each<T: Send>(&self, run: Run, work: impl Fn(usize, Together) -> T + Sync) -> Vec<T> {
        if run.size == 1 {
            return vec![work(0, Together::alone())];
        }
        // The text is tokenised once.
        self.trainer(self.recipe(), None, Share::WHOLE);
        std::thread::scope(|scope| {
            let work = &work;
            let ends: Vec<_> = threads(run.size)
                .into_iter()
                .map(|end| {
                    scope.spawn(move || {
                        let rank = end.rank();
                        let link = Link::open(Box::new(move || Ok(Box::new(end) as Box<dyn Group>)), run.way);
                        work(rank, Together::over(link.unwrap()))
                    })
                })
                .collect();
            ends.into_iter().map(|end| end.join().unwrap()).collect()
        })
    }

    /// Trains into the folder `name`, from its newest checkpoint if it has one; what process 0 saw, and its latents.
    fn train(&self, recipe: &Recipe, run: Run, name: &str) -> (Seen, Vec<f32>) {
        let out = self.path(name);
        fs::create_dir_all(&out).unwrap();
        let from = (!checkpoint::list(&out).is_empty()).then_some(&*out);
        let all = self.each(run, |rank, together| {
            let share = if run.shard { Share { rank, size: run.size } } else { Share::WHOLE };
            let mut trainer = self.trainer(recipe.clone(), from, share);
            train::meet(&mut trainer, together, "", run.shard).unwrap();
            let mut seen = Seen::default();
            let outcome = train::run(&mut trainer, &out, &AtomicBool::new(false), &mut seen).unwrap();
            assert_eq!(outcome, Outcome::Finished);
            trainer.together.leave().unwrap();
            (seen, latents(&trainer))
        });
        assert!(all.iter().all(|(_, latents)| *latents == all[0].1), "processes have come apart");
        assert!(all.iter().all(|(seen, _)| seen.losses == all[0].0.losses), "all know the losses");
        all.into_iter().next().unwrap()
    }
}

fn latents(trainer: &Trainer) -> Vec<f32> {
    trainer.model.decoder.weights().flat_map(|w| trainer.latents.of(w).to_vec()).collect()
}

/// The largest difference, relative to the wanted.
fn off(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    common::most(found.iter().zip(wanted).map(|(f, w)| ((f - w) / w).abs()))
}

/// Sizes of the steps of every ternary tensor, as the diary of a run has them.
fn updates(run: &Path) -> Vec<f64> {
    let records = train::read_metrics(&run.join(train::METRICS)).unwrap();
    let points = records.iter().filter_map(|record| match record {
        Record::Ternary { tensors, .. } => Some(tensors),
        _ => None,
    });
    let all: Vec<f64> = points.flatten().filter_map(|point| point.rms_update).collect();
    assert!(all.len() > 20);
    all
}

#[test]
fn any_number_of_processes_trains_the_same() {
    let lab = Lab::new();
    let recipe = lab.recipe();
    let (one, _) = lab.train(&recipe, ONE, "one");
    // Ten sequences a step, in micro-batches of five and fewer: three processes have four, three and three.
    for size in [2, 3, 4] {
        for (way, bound) in [(Way::Fastest, 1e-4), (Way::InOrder, 1e-4), (Way::Bf16, 1e-2)] {
            for shard in [false, true] {
                let name = format!("{size}-{way:?}-{shard}");
                let (seen, _) = lab.train(&recipe, Run { size, way, shard }, &name);
                let (losses, validations) =
                    (off(&seen.losses, &one.losses), off(&seen.validations, &one.validations));
                println!("{name}: losses off by {losses:.1e}, validations by {validations:.1e}");
                assert!(losses < bound && validations < bound, "{name}: {losses}, {validations}");
                let first = off(&seen.losses[..1], &one.losses[..1]);
                assert!(
                    first < 1e-6,
                    "{name}: the first loss is of the same weights on the same sequences: {first}"
                );
            }
        }
    }
}

#[test]
fn weights_become_ternary_at_the_same_steps_in_any_number_of_processes() {
    let lab = Lab::new();
    let mut recipe = lab.recipe();
    recipe.ternary.anneal = 0.25;
    (recipe.ternary.start.attention, recipe.ternary.start.ends) = (0.2, 0.5);
    let (one, _) = lab.train(&recipe, ONE, "one");
    for shard in [false, true] {
        let run = Run { size: 3, way: Way::InOrder, shard };
        let (seen, _) = lab.train(&recipe, run, &format!("shard-{shard}"));
        let losses = off(&seen.losses, &one.losses);
        println!("shared out {shard}: losses off by {losses:.1e}");
        assert!(losses < 1e-4, "shared out {shard}: {losses}");
    }
}

#[test]
fn any_number_of_processes_drops_the_same_values() {
    let lab = Lab::new();
    let mut recipe = lab.recipe();
    let (none, _) = lab.train(&recipe, ONE, "none");
    recipe.train.dropout = 0.2;
    let (one, _) = lab.train(&recipe, ONE, "one");
    for size in [2, 3] {
        let run = Run { size, way: Way::InOrder, shard: false };
        let (seen, _) = lab.train(&recipe, run, &size.to_string());
        let (losses, first) = (off(&seen.losses, &one.losses), off(&seen.losses[..1], &one.losses[..1]));
        println!("{size} processes: losses off by {losses:.1e}, the first by {first:.1e}");
        assert!(losses < 1e-4 && first < 1e-6, "{size}: {losses}, {first}");
    }
    // Other micro-batches are the same sequences.
    (recipe.train.batch, recipe.train.accumulate) = (2, 5);
    let (batches, _) = lab.train(&recipe, ONE, "batches");
    assert!(off(&batches.losses, &one.losses) < 1e-4);
    assert!(off(&one.losses[..1], &none.losses[..1]) > 1e-3, "{:?}, {:?}", one.losses, none.losses);
}

#[test]
fn in_order_the_bits_are_the_same_in_every_run_and_however_moments_are_shared_out() {
    let lab = Lab::new();
    for (optimizer, moments) in [
        (OptimizerKind::AdamW, MomentFormat::F32),
        (OptimizerKind::AdamW, MomentFormat::Int8),
        (OptimizerKind::Sgd, MomentFormat::F32),
        (OptimizerKind::Muon, MomentFormat::F32),
    ] {
        let mut recipe = lab.recipe();
        (recipe.train.optimizer, recipe.train.moments) = (optimizer, moments);
        // The norm is summed up in another order where moments are shared out.
        recipe.train.clip = 0.0;
        let run = Run { size: 3, way: Way::InOrder, shard: false };
        let name = |what: &str| format!("{optimizer}-{moments}-{what}");
        let first = lab.train(&recipe, run, &name("first"));
        let second = lab.train(&recipe, run, &name("second"));
        assert!(first.1 == second.1 && first.0.losses == second.0.losses, "{}", name("again"));
        let shared_out = lab.train(&recipe, Run { shard: true, ..run }, &name("shared-out"));
        assert!(first.1 == shared_out.1, "{}", name("shared out"));
        // What was written is the same, too, moments and all.
        let file = |what: &str| {
            let run = checkpoint::list(&lab.path(&name(what))).pop().unwrap();
            fs::read(run.join("optimizer.safetensors")).unwrap()
        };
        assert!(file("first") == file("shared-out"), "{}", name("optimizer.safetensors"));
        let updates = |what: &str| updates(&lab.path(&name(what)));
        assert!(off(&updates("shared-out"), &updates("first")) < 1e-9, "{}", name("rms_update"));
    }
}

#[test]
fn several_processes_learn_from_a_teacher_as_one_does() {
    let lab = Lab::new();
    let mut recipe = lab.recipe();
    recipe.train.accumulate = 1;
    lab.train(&recipe, ONE, "teacher");
    recipe.seed = 4;
    recipe.ternary.anneal = 0.5;
    let teacher = checkpoint::list(&lab.path("teacher")).pop();
    recipe.distill = Some(DistillConfig { teacher, relations: 2.0, ..DistillConfig::default() });
    let (one, _) = lab.train(&recipe, ONE, "one");
    for (size, way, shard) in [(2, Way::Fastest, false), (3, Way::InOrder, true), (4, Way::Bf16, false)] {
        let bound = if way == Way::Bf16 { 1e-2 } else { 1e-4 };
        let name = format!("{size}-{way:?}-{shard}");
        let (seen, _) = lab.train(&recipe, Run { size, way, shard }, &name);
        assert_eq!((seen.divergences.len(), seen.relations.len()), (10, 10), "{name}");
        let off = [
            off(&seen.losses, &one.losses),
            off(&seen.divergences, &one.divergences),
            off(&seen.relations, &one.relations),
        ];
        println!("{name}: losses, divergences and relations off by {off:.1?}");
        assert!(off.iter().all(|off| *off < bound), "{name}: {off:?}");
    }
    // What is stored of it, of which each process reads its own sequences.
    let (cache, lessons) = (lab.path("cache"), lab.path("lessons"));
    Teaching::open(&recipe, Some(8), 1000, &lessons, &cache, &|_, _| {}).unwrap().run(&|_| {}).unwrap();
    recipe.distill = Some(DistillConfig { lessons: Some(lessons), ..DistillConfig::default() });
    let (one, _) = lab.train(&recipe, ONE, "one-stored");
    let (seen, _) = lab.train(&recipe, Run { size: 3, way: Way::InOrder, shard: false }, "3-stored");
    let off = [off(&seen.losses, &one.losses), off(&seen.divergences, &one.divergences)];
    assert!(off.iter().all(|off| *off < 1e-4) && seen.divergences.len() == 10, "stored: {off:?}");
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let lab = Lab::new();
    let (mut short, long) = (lab.recipe(), lab.recipe());
    short.train.schedule = ternlm::config::ScheduleKind::Constant;
    let mut long = Recipe { train: short.train.clone(), ..long };
    short.train.steps = 5;
    long.train.steps = 10;
    let (one, _) = lab.train(&long, ONE, "one");
    for (first, then, shard) in [(2, 3, false), (3, 1, true), (1, 4, true)] {
        let name = format!("{first}-{then}");
        let way = Way::InOrder;
        lab.train(&short, Run { size: first, way, shard }, &name);
        let (seen, _) = lab.train(&long, Run { size: then, way, shard }, &name);
        let off = off(&seen.losses, &one.losses[5..]);
        assert!(off < 1e-4, "{name}: {off}");
    }
}

/// What each of two processes is told when the second one does something else.
fn refused(lab: &Lab, change: impl Fn(&mut Trainer) + Sync) -> Vec<String> {
    let run = Run { size: 2, ..ONE };
    lab.each(run, |rank, together| {
        let mut trainer = lab.trainer(lab.recipe(), None, Share::WHOLE);
        if rank == 1 {
            change(&mut trainer);
        }
        let met = train::meet(&mut trainer, together, "", false);
        let error = met.unwrap_err();
        trainer.together.fail(error).to_string()
    })
}

#[test]
fn who_does_something_else_is_refused_with_what_differs() {
    let lab = Lab::new();
    let said = refused(&lab, |trainer| trainer.recipe.train.lr = 0.25);
    assert_eq!(said, ["process 1 of 2: train.lr: found 0.25, wanted 0.003, as process 0 has it", ""]);
    let said = refused(&lab, |trainer| trainer.progress.step = 7);
    assert!(said[0].contains("process 1 of 2: step: found 7, wanted 0"), "{said:?}");
    let said = refused(&lab, |trainer| {
        let weight = trainer.model.decoder.weights().nth(3).unwrap().clone();
        let mut values = trainer.latents.of(&weight).to_vec();
        values[5] += 1e-6;
        let weight = trainer.model.decoder.weights_mut().nth(3).unwrap();
        trainer.latents.set(weight, values).unwrap();
    });
    let name =
        lab.trainer(lab.recipe(), None, Share::WHOLE).model.decoder.weights().nth(3).unwrap().name.clone();
    assert!(said[0].starts_with(&format!("{name}: process 1 of 2 has other values")), "{said:?}");
    // A text of other tokens.
    fs::write(lab.path("other.txt"), "other tokens ".repeat(3000)).unwrap();
    let said = refused(&lab, |trainer| {
        let mut recipe = lab.recipe();
        recipe.data.train = vec![lab.path("other.txt")];
        *trainer = lab.trainer(recipe, None, Share::WHOLE);
    });
    assert!(said[0].starts_with("process 1 of 2: corpus: found "), "{said:?}");
    assert!(!said[0].contains("data.train"), "paths may differ: {said:?}");
    // Held-out texts of other tokens, which would become one validation.
    let said = lab.each(Run { size: 2, ..ONE }, |rank, together| {
        let mut recipe = lab.recipe();
        recipe.data.val = vec![lab.path(["text.txt", "other.txt"][rank])];
        let mut trainer = lab.trainer(recipe, None, Share::WHOLE);
        let error = train::meet(&mut trainer, together, "", false).unwrap_err();
        trainer.together.fail(error).to_string()
    });
    assert!(said[0].starts_with("process 1 of 2: held_out: found "), "{said:?}");
}

#[test]
fn what_takes_one_process_long_is_waited_for() {
    let lab = Lab::new();
    let given_up = Barrier::new(2);
    let met = |more: u64| {
        lab.each(Run { size: 2, ..ONE }, |rank, mut together| {
            together.set_patience(Duration::from_millis(20)).unwrap();
            together.wait_longer(Duration::from_secs(more)).unwrap();
            match (rank, more) {
                (0, 0) => drop(given_up.wait()),
                (0, _) => std::thread::sleep(Duration::from_millis(100)),
                _ => {}
            }
            let met = together.any(false);
            if (rank, more) == (1, 0) {
                given_up.wait();
            }
            let _ = together.leave();
            met.map_err(|error| error.to_string())
        })
    };
    assert_eq!(met(60), [Ok(false), Ok(false)]);
    let impatient = met(0);
    assert!(impatient[1].as_ref().unwrap_err().contains("no answer from the other threads"), "{impatient:?}");
}

#[test]
fn more_processes_than_sequences_are_refused() {
    let lab = Lab::new();
    let run = Run { size: 11, ..ONE };
    let said = lab.each(run, |_, together| {
        let mut trainer = lab.trainer(lab.recipe(), None, Share::WHOLE);
        let error = train::meet(&mut trainer, together, "", false).unwrap_err();
        trainer.together.fail(error).to_string()
    });
    assert!(said[0].contains("found 10 sequences a step, wanted at least 11"), "{said:?}");
}

/// What each of three processes of a run is told when the second one does `harm` before step 6.
fn harmed(lab: &Lab, harm: impl Fn(&mut Trainer) -> Result<()> + Sync) -> Vec<String> {
    harmed_as(Run { size: 3, ..ONE }, lab, harm)
}

fn harmed_as(run: Run, lab: &Lab, harm: impl Fn(&mut Trainer) -> Result<()> + Sync) -> Vec<String> {
    // Nobody is harmed while another still waits for the first steps' last word.
    let all = Barrier::new(3);
    lab.each(run, |rank, together| {
        let mut recipe = lab.recipe();
        let out = lab.path("harmed");
        fs::create_dir_all(&out).unwrap();
        recipe.train.steps = 5;
        let mut trainer = lab.trainer(recipe, None, Share::WHOLE);
        train::meet(&mut trainer, together, "", run.shard).unwrap();
        let never = AtomicBool::new(false);
        train::run(&mut trainer, &out, &never, &mut Seen::default()).unwrap();
        all.wait();
        trainer.recipe.train.steps = 10;
        if rank == 1
            && let Err(gone) = harm(&mut trainer)
        {
            return gone.to_string();
        }
        let error = train::run(&mut trainer, &out, &never, &mut Seen::default()).unwrap_err();
        trainer.together.fail(error).to_string()
    })
}

/// Changes a value of the weight with that number.
fn change(trainer: &mut Trainer, nth: usize, to: f32) -> Result<()> {
    let mut values = {
        let weight = trainer.model.decoder.weights().nth(nth).unwrap();
        trainer.latents.of(weight).to_vec()
    };
    values[0] = to;
    let weight = trainer.model.decoder.weights_mut().nth(nth).unwrap();
    trainer.latents.set(weight, values)
}

#[test]
fn processes_that_come_apart_stop_at_the_next_checkpoint_which_is_not_written() {
    let lab = Lab::new();
    let said = harmed(&lab, |trainer| change(trainer, 2, 0.123));
    assert!(
        said[0].starts_with("after step 10: model.layers.0.self_attn.q_proj.weight: process 1 of 3"),
        "{said:?}"
    );
    assert!(said[0].ends_with("step-00000005"), "{said:?}");
    assert_eq!(said[1..], ["", ""], "one of them says it");
    assert_eq!(checkpoint::list(&lab.path("harmed")).len(), 1);
}

#[test]
fn a_loss_that_is_not_finite_on_one_stops_all() {
    let lab = Lab::new();
    let said = harmed(&lab, |trainer| change(trainer, 1, f32::NAN));
    let wanted = "model.layers.0.input_layernorm.weight is not finite: the loss of step 5 is NaN";
    assert!(said[0].starts_with(wanted), "{said:?}");
}

#[test]
fn one_that_goes_away_ends_all() {
    let lab = Lab::new();
    let said = harmed(&lab, |trainer| {
        drop(std::mem::take(&mut trainer.together));
        Err(ternlm::Error::usage("left"))
    });
    assert_eq!(said[1], "left");
    assert!(
        said[0].contains("it ended before its time") && said[2].contains("it ended before its time"),
        "{said:?}"
    );
    assert_eq!(checkpoint::list(&lab.path("harmed")).len(), 1, "the last checkpoint is whole");
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_all_with_the_reason() {
    for shard in [false, true] {
        let lab = Lab::new();
        let said = harmed_as(Run { size: 3, shard, ..ONE }, &lab, |_| {
            let folder = checkpoint::folder(&lab.path("harmed"));
            fs::rename(&folder, lab.path("moved")).unwrap();
            fs::write(folder, "in the way").unwrap();
            Ok(())
        });
        assert!(said[0].contains("cannot create") && said[0].contains("checkpoints"), "{shard}: {said:?}");
        assert!(
            said[1..].iter().all(|text| text.is_empty() || text.contains("cannot create")),
            "{shard}: {said:?}"
        );
    }
}
