// Rows by expert, for operators that permute what they have just routed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "outputs.h"

// A stable counting sort in three steps: every chunk of tokens counts its experts; the counts
// become the rows where each chunk's experts begin; every chunk places its tokens. The rows do not
// depend on how tokens are cut into chunks.
//
// Floor: the experts are read twice, two integers written per assignment.
class Permuter {
 public:
  // A thread is worth waking for `grain` tokens.
  Permuter(int64_t tokens, int64_t top_k, int64_t num_experts, int64_t grain)
      : tokens_(tokens), top_k_(top_k), experts_(num_experts) {
    source = empty({tokens * top_k}, at::kInt);
    slot_of = empty({tokens, top_k}, at::kInt);
    offsets = empty({num_experts + 1}, at::kInt);
    chunks = std::clamp<int64_t>((tokens + grain - 1) / grain, 1, at::get_num_threads());
    counts_.assign(chunks * num_experts, 0);
  }

  at::Tensor source, slot_of, offsets;
  int64_t chunks;

  int64_t begin(int64_t chunk) const { return tokens_ * chunk / chunks; }

  // To be called for all tokens of a chunk, in any pieces. False if an expert is out of range.
  template <class I>
  bool count(int64_t chunk, const I* experts, int64_t tokens) {
    int32_t* counts = counts_.data() + chunk * experts_;
    bool good = true;
    for (int64_t i = 0; i < tokens * top_k_; ++i) {
      const uint64_t e = static_cast<uint64_t>(static_cast<int64_t>(experts[i]));
      if (e < static_cast<uint64_t>(experts_))
        ++counts[e];
      else
        good &= experts[i] == -1;
    }
    return good;
  }

  // Once all is counted: offsets, and the first row of every expert of every chunk.
  void settle() {
    int32_t* offset = offsets.mutable_data_ptr<int32_t>();
    int32_t row = 0;
    for (int64_t e = 0; e < experts_; ++e) {
      offset[e] = row;
      for (int64_t c = 0; c < chunks; ++c) {
        int32_t& count = counts_[c * experts_ + e];
        const int32_t first = row;
        row += count;
        count = first;
      }
    }
    offset[experts_] = row;
    std::fill(source.mutable_data_ptr<int32_t>() + row,
              source.mutable_data_ptr<int32_t>() + source.numel(), -1);
  }

  // Rows of all tokens. Waking another thread pays for itself from about 10 microseconds on.
  template <class I>
  void place_all(const I* experts) {
    if (tokens_ * top_k_ >= 16384) return for_chunks([&](int64_t c) { place(c, experts); });
    for (int64_t c = 0; c < chunks; ++c) place(c, experts);
  }

  // f(chunk) for all chunks, side by side.
  template <class F>
  void for_chunks(const F& f) const {
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) f(c);
    });
  }

 private:
  template <class I>
  void place(int64_t chunk, const I* experts) {
    int32_t* next = counts_.data() + chunk * experts_;
    int32_t* from = source.mutable_data_ptr<int32_t>();
    int32_t* slot = slot_of.mutable_data_ptr<int32_t>();
    for (int64_t t = begin(chunk); t < begin(chunk + 1); ++t)
      for (int64_t i = t * top_k_; i < (t + 1) * top_k_; ++i) {
        if (experts[i] < 0) {
          slot[i] = -1;
          continue;
        }
        const int32_t row = next[experts[i]]++;
        slot[i] = row;
        from[row] = static_cast<int32_t>(t);
      }
  }

  int64_t tokens_, top_k_, experts_;
  std::vector<int32_t> counts_;  // (chunks, experts)
};
