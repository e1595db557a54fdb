// Experts on the CPU.
//
// Few rows of an expert (decoding): its weights are read once, in vectors. Floor: their bytes. Many
// (prefill): PyTorch's own matrix product for each expert, into the result. Floor: 6 H I
// operations of each row.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "fits.h"
#include "floats.h"
#include "isa.h"
#include "outputs.h"

namespace {

// Rows of an expert up to which they are multiplied here: as pairs of bfloat16, and otherwise.
constexpr int64_t FEW = 32, FEW_FLOATS = 8;
constexpr int64_t SMALL = 64;   // rows up to which a matrix product is too small for all threads
constexpr int64_t MOST = 1024;  // rows of a matrix product
// Rows that a vector of weights is multiplied with at a time: as many as fit the registers.
constexpr int64_t ROWS = 4, PAIRED_ROWS = 6;
constexpr int64_t CHANNELS = 16;  // of an expert, that a thread takes at a time
constexpr int64_t SCALED = 128;   // weights that share a scale in float8, along both dimensions

// Channels of `width` weights, side by side in each expert.
template <class W>
struct Weights {
  const W* w;
  int64_t channels, width, expert;  // `expert`: from one to the next
  const float* scale;
  int64_t scale_expert, scale_row;
};

}  // namespace

#define KERNEL "../grouped_swiglu/native_kernel.h"
#include "per_isa.h"

namespace {

using Optional = std::optional<at::Tensor>;

// Calls f with the weights as they are stored.
template <class X, class F>
void with_weights(const char* name, const at::Tensor& weight, const Optional& scale, const F& f) {
  const int64_t experts = weight.size(0), channels = weight.size(1), width = weight.size(2);
  const auto call = [&](auto* w) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    const float* scales = scale ? scale->const_data_ptr<float>() : nullptr;
    f(Weights<W>{w, channels, width, weight.stride(0), scales, scale ? scale->stride(0) : 0,
                 scale && scale->dim() == 3 ? scale->stride(1) : 0});
  };
  TORCH_CHECK_VALUE(
      (channels == 1 || weight.stride(1) == width) && (width == 1 || weight.stride(2) == 1), name,
      " must be contiguous");
  const auto blocks = [](int64_t n) { return (n + SCALED - 1) / SCALED; };
  switch (weight.scalar_type()) {
    case at::kChar:
      TORCH_CHECK_VALUE(scale, name, "_scale must be given");
      must_fit("scale", *scale, {experts, channels}, at::kFloat);
      TORCH_CHECK_VALUE(channels == 1 || scale->stride(1) == 1, "scale must be contiguous");
      return call(weight.const_data_ptr<int8_t>());
    case at::kFloat8_e4m3fn:
      TORCH_CHECK_VALUE(scale, name, "_scale must be given");
      must_fit("scale", *scale, {experts, blocks(channels), blocks(width)}, at::kFloat);
      TORCH_CHECK_VALUE(scale->size(2) == 1 || scale->stride(2) == 1, "scale must be contiguous");
      return call(weight.const_data_ptr<c10::Float8_e4m3fn>());
    default:
      TORCH_CHECK_VALUE(!scale, name, "_scale goes with weights of 8 bits");
      return call(weight.const_data_ptr<X>());
  }
}

// Where each expert's rows begin, checked; `offsets` are contiguous.
const int32_t* offsets_of(const at::Tensor& offsets, int64_t experts, int64_t rows) {
  must_fit("offsets", offsets, {experts + 1}, at::kInt);
  const int32_t* at = offsets.const_data_ptr<int32_t>();
  bool rising = at[0] == 0 && at[experts] <= rows;
  for (int64_t e = 0; e < experts; ++e) rising &= at[e] <= at[e + 1];
  TORCH_CHECK_VALUE(rising, "offsets must rise from 0 to at most the ", rows, " rows, got ",
                    at::IntArrayRef(std::vector<int64_t>(at, at + experts + 1)));
  return at;
}

struct Item {
  int64_t expert, first;  // channels
};

// The experts that have a few rows: some channels of each at a time, and their rows, staged: as
// floats, or as they are (`pairs`) where the machine multiplies pairs of bfloat16.
struct Few {
  bool pairs;
  std::vector<Item> items;
  std::vector<int64_t> rows, begin;  // rows of all of them; where those of an expert begin
  int64_t padded;
  std::unique_ptr<float[]> floats;
  std::unique_ptr<c10::BFloat16[]> halves;

  Few(bool pairs, const int32_t* offsets, int64_t experts, int64_t channels, int64_t width)
      : pairs(pairs), begin(experts), padded((width + 31) / 32 * 32) {
    for (int64_t e = 0; e < experts; ++e) {
      begin[e] = static_cast<int64_t>(rows.size());
      if (offsets[e + 1] - offsets[e] > most()) continue;
      for (int64_t i = offsets[e]; i < offsets[e + 1]; ++i) rows.push_back(i);
      if (offsets[e] < offsets[e + 1])
        for (int64_t c = 0; c < channels; c += CHANNELS) items.push_back({e, c});
    }
    if (pairs)
      halves.reset(new c10::BFloat16[rows.size() * padded]);
    else
      floats.reset(new float[rows.size() * padded]);
  }

  int64_t most() const { return pairs ? FEW : FEW_FLOATS; }
};

// Stages the rows of `few`, of which `row` gives the place.
template <class X, class W, class F>
void stage_few(Few& few, const Weights<W>& weights, const F& row) {
  at::parallel_for(0, few.rows.size(), 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const X* from = row(few.rows[i]);
      if (few.pairs) {
        c10::BFloat16* to = few.halves.get() + i * few.padded;
        std::memcpy((void*)to, from, weights.width * sizeof(X));
        std::fill(to + weights.width, to + few.padded, c10::BFloat16(0));
      } else {
        ON_BEST_ISA(stage<W>(from, weights.width, few.floats.get() + i * few.padded, few.padded));
      }
    }
  });
}

// Whether rows and weights are such pairs: then ON_PAIRS is what runs where the machine has them.
template <class X, class W>
constexpr bool PAIRS = std::is_same_v<X, c10::BFloat16> &&
                       (std::is_same_v<W, c10::BFloat16> || std::is_same_v<W, int8_t>);
#if defined(__x86_64__)
#define ON_PAIRS(call) avx512::call
#else
#define ON_PAIRS(call) (void)0
#endif

// What the products of an expert need between them, of any expert.
struct Room {
  at::Tensor weights, copies, both;
};

at::Tensor first_rows(at::Tensor& room, int64_t rows, int64_t width, at::ScalarType dtype) {
  if (!room.defined() || room.size(0) < rows) room = empty({rows, width}, dtype);
  return room.narrow(0, 0, rows);
}

// The weights of an expert in the type of the rows: a matrix (width, channels).
template <class X, class W>
at::Tensor matrix_of(const Weights<W>& weights, const at::Tensor& weight, int64_t expert,
                     at::Tensor& room) {
  if (std::is_same_v<W, X>) return weight.select(0, expert).t();
  const at::Tensor matrix =
      first_rows(room, weights.channels, weights.width, c10::CppTypeToScalarType<X>::value);
  X* to = matrix.mutable_data_ptr<X>();
  at::parallel_for(0, weights.channels, 8, [&](int64_t first, int64_t last) {
    ON_BEST_ISA(dequantise(weights, expert, first, last, to + first * weights.width));
  });
  return matrix.t();
}

// Calls f(expert, room) for those that have more than a few rows: side by side where a product is
// too small for all threads, one after the other where it is not.
template <class F>
void each_of_many(int64_t few, const int32_t* offsets, int64_t experts, const F& f) {
  std::vector<int64_t> small;
  Room room;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t n = offsets[e + 1] - offsets[e];
    if (n > few && n <= SMALL)
      small.push_back(e);
    else if (n > few)
      f(e, room);
  }
  std::atomic<size_t> next{0};
  at::parallel_for(0, small.empty() ? 0 : at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const at::AutoDispatchBelowADInplaceOrView below;  // threads do not inherit it
    Room own;
    for (size_t i = next++; i < small.size(); i = next++) f(small[i], own);
  });
}

at::Tensor grouped_swiglu_up(const at::Tensor& given, const at::Tensor& gate_up,
                             const at::Tensor& offsets_given, const Optional& source_given,
                             const Optional& scale) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  TORCH_CHECK_VALUE(given.dim() == 2 && gate_up.dim() == 3 && gate_up.size(1) % 2 == 0 &&
                        gate_up.size(2) == given.size(1) && given.size(1) > 0,
                    "gate_up must be (experts, 2 * intermediate, hidden)");
  const at::Tensor rows = given.stride(1) == 1 ? given : given.contiguous();
  const int64_t experts = gate_up.size(0), inner = gate_up.size(1) / 2, hidden = rows.size(1);
  const Optional source = source_given ? Optional(source_given->contiguous()) : Optional();
  const int64_t count = source ? source->numel() : rows.size(0);
  const at::Tensor offsets = offsets_given.contiguous();
  const int32_t* at = offsets_of(offsets, experts, count);
  const int32_t* from = nullptr;
  if (source) {
    must_fit("source", *source, {count}, at::kInt);
    from = source->const_data_ptr<int32_t>();
    for (int64_t i = 0; i < at[experts]; ++i)
      TORCH_CHECK_VALUE(0 <= from[i] && from[i] < rows.size(0), "source must be between 0 and ",
                        rows.size(0) - 1, " (a row), got ", from[i]);
  }
  at::Tensor result = empty({count, inner}, rows.scalar_type());
  with_floats("rows", rows, [&](auto* x) {
    using X = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    X* h = result.mutable_data_ptr<X>();
    const auto row = [&](int64_t i) { return x + (from ? from[i] : i) * rows.stride(0); };
    with_weights<X>("gate_up", gate_up, scale, [&](const auto& weights) {
      using W = std::remove_const_t<std::remove_pointer_t<decltype(weights.w)>>;
      Few few(PAIRS<X, W> && has_pairs(), at, experts, inner, hidden);
      stage_few<X>(few, weights, row);
      at::parallel_for(0, few.items.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto [e, first] = few.items[i];
          const int64_t n = at[e + 1] - at[e], last = std::min(first + CHANNELS, inner);
          const int64_t from = few.begin[e] * few.padded;
          if constexpr (PAIRS<X, W>) {
            if (few.pairs) {
              ON_PAIRS(up_of_few(weights, e, few.halves.get() + from, few.padded, n, first, last,
                                 h + at[e] * inner));
              continue;
            }
          }
          ON_BEST_ISA(up_of_few(weights, e, few.floats.get() + from, few.padded, n, first, last,
                                h + at[e] * inner));
        }
      });
      each_of_many(few.most(), at, experts, [&](int64_t e, Room& room) {
        const at::Tensor matrix = matrix_of<X>(weights, gate_up, e, room.weights);
        for (int64_t first = at[e]; first < at[e + 1]; first += MOST) {
          const int64_t n = std::min<int64_t>(MOST, at[e + 1] - first);
          at::Tensor part;
          if (source) {
            part = first_rows(room.copies, n, hidden, rows.scalar_type());
            X* to = part.mutable_data_ptr<X>();
            at::parallel_for(0, n, 16, [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r)
                std::memcpy((void*)(to + r * hidden), row(first + r), hidden * sizeof(X));
            });
          } else {
            part = rows.slice(0, first, first + n);
          }
          at::Tensor both = first_rows(room.both, n, 2 * inner, rows.scalar_type());
          at::mm_out(both, part, matrix);
          const X* p = both.const_data_ptr<X>();
          at::parallel_for(0, n, 4, [&](int64_t begin, int64_t end) {
            ON_BEST_ISA(
                swiglu(p + begin * 2 * inner, end - begin, inner, h + (first + begin) * inner));
          });
        }
      });
    });
    std::fill(h + at[experts] * inner, h + count * inner, X(0));
  });
  return result;
}

at::Tensor grouped_swiglu_down(const at::Tensor& given, const at::Tensor& down,
                               const at::Tensor& offsets_given, const Optional& scale) {
  TORCH_CHECK_VALUE(given.dim() == 2 && down.dim() == 3 && down.size(2) == given.size(1),
                    "down must be (experts, hidden, intermediate)");
  const at::Tensor rows = given.contiguous();
  const int64_t experts = down.size(0), channels = down.size(1), count = rows.size(0);
  const int64_t inner = rows.size(1);
  const at::Tensor offsets = offsets_given.contiguous();
  const int32_t* at = offsets_of(offsets, experts, count);
  at::Tensor result = empty({count, channels}, rows.scalar_type());
  with_floats("h", rows, [&](auto* x) {
    using X = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    X* y = result.mutable_data_ptr<X>();
    with_weights<X>("down", down, scale, [&](const auto& weights) {
      using W = std::remove_const_t<std::remove_pointer_t<decltype(weights.w)>>;
      Few few(PAIRS<X, W> && has_pairs(), at, experts, channels, inner);
      stage_few<X>(few, weights, [&](int64_t i) { return x + i * inner; });
      at::parallel_for(0, few.items.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto [e, first] = few.items[i];
          const int64_t n = at[e + 1] - at[e], last = std::min(first + CHANNELS, channels);
          const int64_t from = few.begin[e] * few.padded;
          if constexpr (PAIRS<X, W>) {
            if (few.pairs) {
              ON_PAIRS(down_of_few(weights, e, few.halves.get() + from, few.padded, n, first, last,
                                   y + at[e] * channels));
              continue;
            }
          }
          ON_BEST_ISA(down_of_few(weights, e, few.floats.get() + from, few.padded, n, first, last,
                                  y + at[e] * channels));
        }
      });
      each_of_many(few.most(), at, experts, [&](int64_t e, Room& room) {
        at::Tensor part = result.slice(0, at[e], at[e + 1]);
        at::mm_out(part, rows.slice(0, at[e], at[e + 1]),
                   matrix_of<X>(weights, down, e, room.weights));
      });
    });
    std::fill(y + at[experts] * channels, y + count * channels, X(0));
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) {
  m.impl("grouped_swiglu_up", grouped_swiglu_up);
  m.impl("grouped_swiglu_down", grouped_swiglu_down);
}
