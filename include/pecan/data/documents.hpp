#pragma once
/// Where documents begin inside a sample, as attention, positions and loss need it.

#include <cstdint>
#include <span>

namespace pecan::data {

/// Marks of the tokens of one sample. An end-of-document token belongs to the document that it
/// ends. Writes for each token where the spans are not empty: `positions`, counted from the start
/// of its document; `starts`, the position in the sample of the first token of its document;
/// `mask`, 0 at an end-of-document token, whose successor is unrelated, and 1 elsewhere. A document
/// that began before the sample counts from its first token here. Source: Megatron-LM's
/// reset_position_ids, reset_attention_mask and eod_mask_loss.
void mark_documents(std::span<const std::int32_t> tokens,
                    std::int32_t end_of_document,
                    std::span<std::int32_t> positions,
                    std::span<std::int32_t> starts,
                    std::span<float> mask);

}  // namespace pecan::data
