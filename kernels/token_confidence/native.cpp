// The token of each row of logits and its confidence on the CPU.
//
// Floor: every logit read once, and one exponential of each. A row is summed up in pieces that
// depend on the vocabulary alone, merged in order: a row's bits do not depend on the others.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "isa.h"
#include "logits.h"
#include "outputs.h"

namespace {

constexpr int64_t BLOCK = 512;         // tokens read from memory for their largest, then from cache
constexpr int64_t PIECE = 16 * BLOCK;  // tokens that a thread takes at a time
constexpr float MOST_NOISE = 22.9f;    // -log(-log(1 - u)) of the smallest u

// Tokens of a row that lie side by side; `mask` is the place of the mask token, if it is here.
template <class T>
struct Row {
  const T* x;
  int64_t n, mask;
};

// The key and counter of a row's random bits.
struct Draw {
  uint64_t seed;
  uint32_t position, step;
};

// The numbers of the reference, of which m, second and x are not yet divided by the temperature.
struct Piece {
  float m, s, t, second, key, x;
  int64_t token;
};

}  // namespace

#define KERNEL "../token_confidence/native_kernel.h"
#include "per_isa.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
using Optional = std::optional<at::Tensor>;

void add(const Piece& part, float m, float scale, Piece& whole) {
  if (part.m == -INF && part.s == 0) return;
  const float d = std::max((part.m - m) * scale, -104.0f), weight = std::exp(d);
  whole.s += weight * part.s;
  whole.t += weight * (part.t + part.s * d);
}

// Two pieces of a row, the one with the lower tokens first.
Piece merged(const Piece& a, const Piece& b, float scale) {
  const Piece& better = b.key > a.key ? b : a;
  const float m = std::max(a.m, b.m);
  const float second = std::max(std::min(a.m, b.m), std::max(a.second, b.second));
  Piece whole{m, 0, 0, second, better.key, better.x, better.token};
  add(a, m, scale, whole);
  add(b, m, scale, whole);
  return whole;
}

enum class Score { max_prob, margin, neg_entropy };

Score score_of(std::string_view name) {
  if (name == "max_prob") return Score::max_prob;
  if (name == "margin") return Score::margin;
  TORCH_CHECK_VALUE(name == "neg_entropy", "score must be max_prob, margin or neg_entropy, got ",
                    name);
  return Score::neg_entropy;
}

// One value per row, or none at all.
template <class T>
struct PerRow {
  const T* values = nullptr;
  int64_t stride = 0;

  PerRow(const char* name, const Optional& tensor, int64_t rows) {
    if (!tensor) return;
    TORCH_CHECK_VALUE(tensor->dim() == 1 && tensor->size(0) == rows, name, " must have ", rows,
                      " entries");
    values = tensor->const_data_ptr<T>();
    stride = tensor->stride(0);
  }

  T operator[](int64_t row) const { return values[row * stride]; }
};

struct Outputs {
  int32_t* token;
  float *prob, *score, *parts;
};

void store(const Piece& row, Score score, float scale, int64_t r, const Outputs& out) {
  const float m = row.m * scale;
  const bool sure = std::isfinite(m) && std::isfinite(row.s) && row.s > 0;
  const float prob = sure ? std::exp((row.x - row.m) * scale) / row.s : 0;
  float found = prob;
  if (score == Score::margin) found = -std::expm1((row.second - row.m) * scale) / row.s;
  if (score == Score::neg_entropy) found = row.t / row.s - std::log(row.s);
  out.token[r] = static_cast<int32_t>(row.token);
  out.prob[r] = prob;
  out.score[r] = sure ? found : -INF;
  const float parts[] = {m, row.s, row.t, row.second * scale, row.key, row.x * scale};
  std::copy_n(parts, 6, out.parts + 6 * r);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> token_confidence(
    const at::Tensor& logits, const Optional& rows, const Optional& seed, const Optional& position,
    const Optional& step, const Optional& temperatures, double temperature,
    c10::string_view score_name, int64_t mask_token, int64_t first_token) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  constexpr int64_t LAST = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) >= 2, "logits must be (rows, tokens)");
  const int64_t count = logits.size(0), tokens = logits.size(1);
  TORCH_CHECK_VALUE(0 <= first_token && tokens <= LAST && first_token <= LAST + 1 - tokens,
                    "first_token out of range");
  TORCH_CHECK_VALUE(
      seed.has_value() == position.has_value() && seed.has_value() == step.has_value(),
      "seed, position and step go together");
  const Score score = score_of(std::string_view(score_name.data(), score_name.size()));
  const PerRow<bool> asked("rows", rows, count);
  const PerRow<int64_t> seeds("seed", seed, count), positions("position", position, count),
      steps("step", step, count);
  const PerRow<float> each_temperature("temperature", temperatures, count);
  for (int64_t r = 0; temperatures && r < count; ++r)
    TORCH_CHECK_VALUE(1e-6f <= each_temperature[r] && each_temperature[r] <= 1e6f,
                      "temperature must be between 1e-6 and 1e6, got ", each_temperature[r]);
  const auto scale_of = [&](int64_t r) {
    return temperatures ? 1 / each_temperature[r] : static_cast<float>(1 / temperature);
  };

  at::Tensor token = empty({count}, at::kInt), prob = empty({count}, at::kFloat),
             found = empty({count}, at::kFloat), parts = empty({count, 6}, at::kFloat);
  const Outputs out{token.mutable_data_ptr<int32_t>(), prob.mutable_data_ptr<float>(),
                    found.mutable_data_ptr<float>(), parts.mutable_data_ptr<float>()};
  std::vector<int64_t> work;
  work.reserve(count);
  for (int64_t r = 0; r < count; ++r)
    if (!asked.values || asked[r])
      work.push_back(r);
    else
      store({-INF, 0, 0, -INF, -INF, -INF, -1}, score, 1, r, out);

  const int64_t pieces = (tokens + PIECE - 1) / PIECE;
  const int64_t each = (tokens + pieces * BLOCK - 1) / (pieces * BLOCK) * BLOCK;
  const int64_t many = static_cast<int64_t>(work.size());
  const std::unique_ptr<Piece[]> found_pieces(new Piece[many * pieces]);
  const at::Tensor readable = readable_rows(logits);
  with_logits(readable, [&](const auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const int64_t grain = std::max<int64_t>(1, 2 * PIECE / std::min(each, tokens));
    at::parallel_for(0, many * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = work[i / pieces], from = i % pieces * each;
        const Row<T> row{data + r * readable.stride(0) + from,
                         std::clamp<int64_t>(tokens - from, 0, each),
                         mask_token - first_token - from};
        Draw draw{};
        if (seeds.values)
          draw = {static_cast<uint64_t>(seeds[r]), static_cast<uint32_t>(positions[r]),
                  static_cast<uint32_t>(steps[r])};
        const Draw* drawn = seeds.values ? &draw : nullptr;
        if (score == Score::neg_entropy)
          ON_BEST_ISA(sum_up<true>(row, first_token + from, scale_of(r), drawn, found_pieces[i]));
        else
          ON_BEST_ISA(sum_up<false>(row, first_token + from, scale_of(r), drawn, found_pieces[i]));
      }
    });
  });
  for (int64_t i = 0; i < many; ++i) {
    Piece whole = found_pieces[i * pieces];
    const float scale = scale_of(work[i]);
    for (int64_t p = 1; p < pieces; ++p) whole = merged(whole, found_pieces[i * pieces + p], scale);
    store(whole, score, scale, work[i], out);
  }
  return {token, prob, found, parts};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("token_confidence", token_confidence); }
