// ESA's scores of cached tokens on the CPU.
//
// Floor of decoding: every compressed key read once, 2 E bytes of bfloat16 each. Of a chunk of C
// queries: 2 x 2 C E operations per token, as dot products are computed twice rather than kept.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "cache.h"
#include "floats.h"
#include "isa.h"
#include "logits.h"  // scores.h names its Scoring
#include "outputs.h"

namespace {

constexpr int64_t TILE = 64;     // tokens whose keys are staged at a time
constexpr int64_t CHUNK = 1024;  // of a thread
constexpr int64_t AHEAD = 8192;  // bytes between what is computed with and what is asked for

// All arguments of a call.
template <class T>
struct Job {
  const float* q;               // (B, padded, width): folded, zeros between and behind
  const c10::BFloat16* halves;  // the same where chunks are multiplied as pairs, or null
  int64_t padded, width;
  const T* k;
  int64_t k_strides[3];  // block, token, head
  const float* scale;
  int64_t scale_strides[2];
  int64_t groups, dim;
  const Pages& pages;
  std::vector<int64_t> queries;
};

}  // namespace

#define KERNEL "../token_scores/native_kernel.h"
#include "per_isa.h"

namespace {

using Optional = std::optional<at::Tensor>;

// Queries (B, padded, groups, each) as float32, added up over the heads of a group.
template <class T>
std::vector<float> fold(const at::Tensor& q, int64_t groups, int64_t padded, int64_t each) {
  const int64_t batch = q.size(0), chunk = q.size(1), dim = q.size(3), shared = q.size(2) / groups;
  std::vector<float> folded(batch * padded * groups * each + 16);
  const T* from = q.const_data_ptr<T>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < chunk; ++c)
      for (int64_t h = 0; h < q.size(2); ++h) {
        const T* row = from + b * q.stride(0) + c * q.stride(1) + h * q.stride(2);
        float* to = folded.data() + ((b * padded + c) * groups + h / shared) * each;
        for (int64_t i = 0; i < dim; ++i) to[i] += static_cast<float>(row[i * q.stride(3)]);
      }
  return folded;
}

// Queries as they are, zeros between and behind.
std::vector<c10::BFloat16> halves_of(const at::Tensor& q, int64_t padded, int64_t each) {
  const int64_t batch = q.size(0), chunk = q.size(1), groups = q.size(2), dim = q.size(3);
  std::vector<c10::BFloat16> halves(batch * padded * groups * each, c10::BFloat16(0));
  const auto* from = q.const_data_ptr<c10::BFloat16>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < chunk; ++c)
      for (int64_t g = 0; g < groups; ++g) {
        const auto* row = from + b * q.stride(0) + c * q.stride(1) + g * q.stride(2);
        auto* to = halves.data() + ((b * padded + c) * groups + g) * each;
        for (int64_t i = 0; i < dim; ++i) to[i] = row[i * q.stride(3)];
      }
  return halves;
}

template <class T>
void run(Job<T>& job, const Ranges& ranges, int64_t batch, int64_t tokens, float* scores) {
  const int64_t chunks = (tokens + CHUNK - 1) / CHUNK;
  std::vector<float> best;
  bool many = false;
  for (int64_t b = 0; b < batch; ++b) many |= job.queries[b] > 1;
  const auto span = [&](int64_t b, int64_t c) {
    const int64_t first = std::max(c * CHUNK, ranges.start[b]);
    return std::pair(first, std::max(first, std::min((c + 1) * CHUNK, ranges.end[b])));
  };
  if (many) {
    best.resize(batch * chunks * job.padded);
    at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto [first, last] = span(i / chunks, i % chunks);
        ON_BEST_ISA(score(job, i / chunks, first, last, &best[i * job.padded], nullptr));
      }
    });
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t i = 0; i < job.queries[b]; ++i)
          best[b * chunks * job.padded + i] =
              std::max(best[b * chunks * job.padded + i], best[(b * chunks + c) * job.padded + i]);
  }
  at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / chunks, c = i % chunks;
      const auto [first, last] = span(b, c);
      float* row = scores + b * tokens;
      const int64_t stop = std::min((c + 1) * CHUNK, tokens);
      std::fill(row + c * CHUNK, row + std::min(first, stop),
                -std::numeric_limits<float>::infinity());
      std::fill(row + std::clamp(last, c * CHUNK, stop), row + stop,
                -std::numeric_limits<float>::infinity());
      float* over = job.queries[b] > 1 ? &best[b * chunks * job.padded] : nullptr;
      if (first < last) ON_BEST_ISA(score(job, b, first, last, over, row));
    }
  });
}

at::Tensor token_scores(const at::Tensor& queries, const at::Tensor& keys, const Optional& k_scale,
                        const Optional& start, const Optional& end, const Optional& num_queries,
                        const Optional& block_table) {
  const at::Tensor q = queries.dim() == 3 ? queries.unsqueeze(2) : queries;
  at::Tensor k = keys.dim() == 3 ? keys.unsqueeze(2) : keys;
  if (k.stride(3) != 1) k = k.contiguous();
  const int64_t batch = q.size(0), chunk = q.size(1), groups = k.size(2), dim = k.size(3);
  const Pages pages(k, block_table, batch);
  const int64_t tokens = pages.tokens();
  const Ranges ranges(start, end, batch, tokens);
  const PerSequence number("num_queries", num_queries, chunk, batch, chunk, "the queries of q");
  at::Tensor scores = empty({batch, tokens}, at::kFloat);
  const int64_t each = (dim + 15) / 16 * 16, padded = (chunk + 3) / 4 * 4;
  // Queries that are added up over heads have more bits than a pair keeps.
  const bool pairs = chunk > 1 && q.size(2) == groups && q.scalar_type() == at::kBFloat16 &&
                     k.scalar_type() == at::kBFloat16 && has_pairs();
  std::vector<c10::BFloat16> halves;
  if (pairs) halves = halves_of(q, padded, each);
  std::vector<float> folded;
  with_floats("q", q, [&](auto* data) {
    folded =
        fold<std::remove_const_t<std::remove_pointer_t<decltype(data)>>>(q, groups, padded, each);
  });
  const auto run_with = [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    Job<T> job{folded.data(),
               pairs ? halves.data() : nullptr,
               padded,
               groups * each,
               data,
               {k.stride(0), k.stride(1), k.stride(2)},
               k_scale ? k_scale->const_data_ptr<float>() : nullptr,
               {k_scale ? k_scale->stride(0) : 0, k_scale ? k_scale->stride(1) : 0},
               groups,
               dim,
               pages,
               {}};
    for (int64_t b = 0; b < batch; ++b) job.queries.push_back(number[b]);
    run(job, ranges, batch, tokens, scores.mutable_data_ptr<float>());
  };
  if (k.scalar_type() == at::kChar)
    run_with(k.const_data_ptr<int8_t>());
  else if (k.scalar_type() == at::kFloat8_e4m3fn)
    run_with(k.const_data_ptr<c10::Float8_e4m3fn>());
  else
    with_floats("k", k, run_with);
  return scores;
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("token_scores", token_scores); }
