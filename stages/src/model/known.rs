//! The cards that come with the program.

use super::Card;

/// Every card of `stages/models/`, as it is written.
pub const CARDS: &[&str] = &[
    include_str!("../../models/clip-vit-b32.toml"),
    include_str!("../../models/efficientnet-lite0-minilm.toml"),
    include_str!("../../models/mobileclip-s0.toml"),
    include_str!("../../models/openclip-vit-b32-laion2b.toml"),
    include_str!("../../models/siglip-base-224.toml"),
];

/// The cards with their texts, by name. That all can be read is tested.
pub fn known() -> Vec<(Card, &'static str)> {
    CARDS.iter().filter_map(|text| Some((Card::parse(text).ok()?, *text))).collect()
}
