// Caches of tokens, contiguous or paged (ops/cache.py), and integers of either width.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include <ATen/core/Tensor.h>

#include "ranges.h"

// The integers of an index tensor, read as they are.
class Integers {
 public:
  Integers() = default;
  Integers(const char* name, const at::Tensor& values)
      : values_(values.contiguous()),
        wide_(values.scalar_type() == at::kLong),
        data_(values_.const_data_ptr()) {
    TORCH_CHECK_TYPE(wide_ || values.scalar_type() == at::kInt, name,
                     " must be int32 or int64, got ", values.dtype());
  }
  int64_t operator[](int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(data_)[i] : static_cast<const int32_t*>(data_)[i];
  }

  void must_be_between(const char* name, int64_t low, int64_t high, const char* meaning) const {
    if (wide_)
      must_be_in_range<int64_t>(name, values_, low, high, meaning);
    else
      must_be_in_range<int32_t>(name, values_, low, high, meaning);
  }

 private:
  at::Tensor values_;
  bool wide_ = false;
  const void* data_ = nullptr;
};

// One integer for each sequence, or the same for all where the tensor is absent.
class PerSequence {
 public:
  PerSequence(const char* name, const std::optional<at::Tensor>& values, int64_t otherwise,
              int64_t batch, int64_t most, const char* meaning)
      : given_(values.has_value()), otherwise_(otherwise) {
    if (!given_) return;
    TORCH_CHECK_VALUE(values->dim() == 1 && values->size(0) == batch, name, " must have ", batch,
                      " entries");
    values_ = Integers(name, *values);
    values_.must_be_between(name, 0, most, meaning);
  }
  int64_t operator[](int64_t b) const { return given_ ? values_[b] : otherwise_; }

 private:
  bool given_;
  int64_t otherwise_;
  Integers values_;
};

// The tokens start to end - 1 of every sequence.
struct Ranges {
  PerSequence start, end;

  Ranges(const std::optional<at::Tensor>& s, const std::optional<at::Tensor>& e, int64_t batch,
         int64_t tokens)
      : start("start", s, 0, batch, tokens, "the tokens of the cache"),
        end("end", e, tokens, batch, tokens, "the tokens of the cache") {
    for (int64_t b = 0; b < batch; ++b)
      TORCH_CHECK_VALUE(start[b] <= end[b], "start must not be after end, got ", start[b], " and ",
                        end[b], " in sequence ", b);
  }
};

// Which row of a cache holds a token: a number of sequences or blocks, and one within it.
class Pages {
 public:
  Pages(const at::Tensor& cache, const std::optional<at::Tensor>& block_table, int64_t batch)
      : size_(cache.size(1)) {
    if (!block_table) {
      TORCH_CHECK_VALUE(cache.size(0) == batch, "the cache must hold ", batch, " sequences");
      return;
    }
    TORCH_CHECK_VALUE(block_table->dim() == 2 && block_table->size(0) == batch,
                      "block_table must be (", batch, ", pages)");
    pages_ = block_table->size(1);
    paged_ = true;
    table_ = Integers("block_table", *block_table);
    table_.must_be_between("block_table", -1, cache.size(0) - 1, "-1 for a hole");
  }
  bool paged() const { return paged_; }
  int64_t tokens() const { return paged_ ? pages_ * size_ : size_; }
  int64_t block(int64_t b, int64_t token) const {
    return paged_ ? table_[b * pages_ + token / size_] : b;
  }
  int64_t row(int64_t token) const { return paged_ ? token % size_ : token; }
  // The first token behind `token` that may be in another block.
  int64_t next(int64_t token) const {
    return paged_ ? (token / size_ + 1) * size_ : std::numeric_limits<int64_t>::max();
  }

 private:
  int64_t size_, pages_ = 0;
  bool paged_ = false;
  Integers table_;
};
