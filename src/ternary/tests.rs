use super::*;

fn project(latent: &[f32], rows: usize, cols: usize, grouping: Grouping) -> TernaryMatrix {
    TernaryMatrix::project("w", latent, rows, cols, grouping).unwrap()
}

fn trits(m: &TernaryMatrix) -> Vec<i8> {
    (0..m.rows()).flat_map(|r| (0..m.cols()).map(move |c| (r, c))).map(|(r, c)| m.trit(r, c)).collect()
}

#[test]
fn the_rule_by_hand() {
    // mean|w| = (1 + 0.25 + 0.5 + 0.25) / 4 = 0.5: the threshold is 0.25, and a tie goes to 0.
    let m = project(&[1.0, -0.25, -0.5, 0.25], 1, 4, Grouping::Size(4));
    assert_eq!(m.scales(), [0.5]);
    assert_eq!(trits(&m), [1, 0, -1, 0]);
    let mut row = [9.0; 4];
    m.unpack_row(0, &mut row);
    assert_eq!(row, [0.5, 0.0, -0.5, 0.0]);
}

#[test]
fn a_short_last_group_has_its_own_mean() {
    let m = project(&[1.0, 1.0, 1.0, 1.0, 8.0], 1, 5, Grouping::Size(4));
    assert_eq!(m.scales(), [1.0, 8.0]);
    assert_eq!(trits(&m), [1, 1, 1, 1, 1]);
}

#[test]
fn one_scale_for_a_tensor() {
    let m = project(&[1.0, 1.0, -3.0, 3.0], 2, 2, Grouping::Tensor);
    assert_eq!(m.scales(), [2.0, 2.0]);
    assert_eq!(trits(&m), [0, 0, -1, 1]);
}

#[test]
fn zero_and_vanishing_groups_are_dead() {
    // 1e-12 rounds to 0 in f16: the group must be all zeros, not ±0.
    let m = project(&[0.0, 0.0, 1e-12, -1e-12], 2, 2, Grouping::Size(2));
    assert_eq!(m.scales(), [0.0, 0.0]);
    assert_eq!(trits(&m), [0; 4]);
    assert_eq!(Stats::of(&m).dead_groups, 2);
}

#[test]
fn the_scale_is_rounded_to_f16_before_it_is_used() {
    // The mean, 1.0004, rounds to 1 in f16 (spacing 2^-10). Its own half, 0.5002, would make the first weight a 0.
    let m = project(&[0.5001, 1.5007], 1, 2, Grouping::Size(2));
    assert_eq!(m.scales(), [1.0]);
    assert_eq!(trits(&m), [1, 1]);
}

#[test]
fn a_latent_that_is_not_finite_is_named() {
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let error =
            TernaryMatrix::project("layer.q_proj", &[1.0, bad], 1, 2, Grouping::default()).unwrap_err();
        assert!(error.to_string().contains("layer.q_proj"), "{error}");
    }
}

#[test]
fn statistics_count_every_weight_once() {
    let latent: Vec<f32> = (0..3 * 37).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect();
    let m = project(&latent, 3, 37, Grouping::Size(16));
    let stats = Stats::of(&m);
    let all = trits(&m);
    assert_eq!(stats.weights(), 111);
    assert_eq!(stats.minus, all.iter().filter(|t| **t == -1).count() as u64);
    assert_eq!(stats.zero, all.iter().filter(|t| **t == 0).count() as u64);
    assert_eq!(stats.groups, 9);
}

#[test]
fn flips_are_told_apart() {
    // codes, lowest first: old −1 0 +1 −1, new 0 +1 −1 −1
    let (old, new) = (0b00_10_01_00u32, 0b00_00_10_01u32);
    assert_eq!(Flips::between(old, new), Flips { to_zero: 1, from_zero: 1, sign: 1 });
}

#[test]
fn stored_parts_are_judged() {
    let m = project(&[1.0, -1.0, 0.1], 1, 3, Grouping::Size(2));
    let parts =
        |words: Vec<u32>, scales: Vec<f32>| TernaryMatrix::from_parts(1, 3, Grouping::Size(2), words, scales);
    assert_eq!(parts(m.words().to_vec(), m.scales().to_vec()).unwrap(), m);
    assert!(parts(vec![0b11_0000], m.scales().to_vec()).unwrap_err().contains("code 3 in row 0, column 2"));
    assert!(parts(vec![], m.scales().to_vec()).unwrap_err().contains("words"));
    assert!(parts(m.words().to_vec(), vec![1.0]).unwrap_err().contains("scales"));
    for scale in [f32::NAN, f32::INFINITY, -1.0, 0.1, 1e-9] {
        assert!(parts(m.words().to_vec(), vec![scale, 1.0]).unwrap_err().contains("f16 holds"), "{scale}");
    }
    let two = |scales| TernaryMatrix::from_parts(2, 1, Grouping::Tensor, vec![2, 0], scales);
    assert!(two(vec![0.5, 0.25]).unwrap_err().contains("one for the whole matrix"));
    assert_eq!(two(vec![0.5, 0.5]).unwrap().trit(1, 0), -1);
}

#[test]
fn what_no_weight_hangs_on_has_one_form() {
    // Trits +1 +1 -1 and, behind the end of the row, codes of -1: the first group has no scale, a negative zero.
    let m = TernaryMatrix::from_parts(1, 3, Grouping::Size(2), vec![0b00_1010], vec![-0.0, 0.5]).unwrap();
    assert_eq!([0, 1, 2].map(|col| m.trit(0, col)), [0, 0, -1]);
    assert_eq!(m, TernaryMatrix::from_values(&[0.0, 0.0, -0.5], 1, 3, Grouping::Size(2)).unwrap());
    assert!(m.scales()[0].is_sign_positive());
}

#[test]
fn ternary_values_are_read_back_without_projecting_them_again() {
    let latent: Vec<f32> = (0..4 * 300).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
    for grouping in [Grouping::Size(128), Grouping::Size(300), Grouping::Tensor] {
        let m = project(&latent, 4, 300, grouping);
        let mut values = vec![0.0; latent.len()];
        values.chunks_mut(300).enumerate().for_each(|(r, row)| m.unpack_row(r, row));
        assert_eq!(TernaryMatrix::from_values(&values, 4, 300, grouping).unwrap(), m);
        // The trap: projecting ternary values again shrinks their scale.
        assert_ne!(project(&values, 4, 300, grouping), m);
        assert_eq!(project(&m.latents(grouping), 4, 300, grouping), m, "latents of {grouping}");
        values[777] *= 1.01;
        assert!(TernaryMatrix::from_values(&values, 4, 300, grouping).is_err());
    }
}

#[test]
fn rows_that_happen_to_share_a_scale_are_no_single_group() {
    // Two rows of scale 1 with different numbers of zeros: each row's latents must average 1 on their own.
    let values = [1.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0];
    for grouping in [Grouping::Size(4), Grouping::Tensor] {
        let m = TernaryMatrix::from_values(&values, 2, 4, grouping).unwrap();
        assert_eq!(project(&m.latents(grouping), 2, 4, grouping), m, "{grouping}");
    }
}

#[test]
fn a_scale_that_is_not_finite_is_no_ternary_value() {
    for bad in [f32::INFINITY, f32::NAN] {
        assert!(TernaryMatrix::from_values(&[bad, 0.0], 1, 2, Grouping::Size(2)).is_err());
    }
}
