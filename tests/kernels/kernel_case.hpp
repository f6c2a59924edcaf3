// Kernels under test: blocks of every awkward size in both forms and storage types, the samples of one group among those of
// another, and coefficients of which every sample may choose its row.
#ifndef POPNORM_TESTS_KERNELS_KERNEL_CASE_HPP
#define POPNORM_TESTS_KERNELS_KERNEL_CASE_HPP

#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/kernel_table.hpp"
#include "kernels/reference.hpp"
#include "support/check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random.hpp"
#include "support/skips.hpp"
#include "support/tensor.hpp"

namespace popnorm_test {

using namespace popnorm::cpu;
using popnorm::reference::Real;

inline std::vector<const KernelTable*> runnable_tables() {
  std::vector<const KernelTable*> tables;
  for (int i = 0; i < tier_count(); ++i) {
    if (tier(i).available())
      tables.push_back(tier(i).table);
    else
      skip(std::string("tier ") + tier(i).table->isa, tier(i).needs);
  }
  return tables;
}

// Calls run(table) for every tier that runs here: their results must be the same bits.
template <class Run>
void expect_same_on_every_tier(const Run& run) {
  std::vector<double> first;
  for (const KernelTable* table : runnable_tables()) {
    SCOPED_TRACE(table->isa);
    const std::vector<double> result = run(*table);
    if (first.empty()) first = result;
    EXPECT_TRUE(same_bits(result, first));
  }
}

struct Case {
  int form;
  int storage;
  std::int64_t samples, positions, channels;
  bool scattered;
};

inline popnorm_type type_of(int storage) {
  constexpr popnorm_type kTypes[] = {POPNORM_F32, POPNORM_F64, POPNORM_BF16, POPNORM_F16};
  static_assert(std::size(kTypes) == kStorages);
  return kTypes[storage];
}

inline void PrintTo(const Case& c, std::ostream* out) {
  *out << (c.form == 0 ? "rows" : "columns") << " " << name_of(type_of(c.storage)) << " " << c.samples << " samples x "
       << c.positions << " positions x " << c.channels << " channels" << (c.scattered ? ", scattered" : "");
}

// An element of a block: sample k of the block is sample `sample` of the tensor.
struct Place {
  std::size_t k;
  std::int64_t sample, position, channel;
};

// Packed tensors of one case. Where its samples are scattered, another group's are in between.
class KernelCase : public testing::TestWithParam<Case> {
 protected:
  KernelCase() : random_("kernels") {
    for (std::int64_t k = 0, at = 0; k < c_.samples; ++k, at += c_.scattered ? 1 + random_.below(2) : 1) {
      index_.push_back(static_cast<std::int32_t>(at));
      row_.push_back(static_cast<std::int32_t>(random_.below(kRows)));
    }
    all_ = index_.back() + 1;
    x_ = tensor();
    dy_ = tensor();
    for (std::int64_t i = 0; i < x_.count(); ++i) {
      x_.set(i, 3 + random_.normal());
      dy_.set(i, 0.2 + random_.normal());
    }
    for (Array* row : {&hi_, &invstd_, &a_, &k1_, &k2_}) {
      *row = Array(arithmetic(), (kRows - 1) * pitch() + c_.channels, Placement::ends_at_guard);
      for (std::int64_t i = 0; i < row->count(); ++i) row->set(i, random_.uniform(0.5, 3));
    }
  }

  popnorm_type type() const { return type_of(c_.storage); }
  popnorm_type arithmetic() const { return arithmetic_type(type()); }
  Array tensor() const { return Array(type(), all_ * c_.positions * c_.channels, Placement::ends_at_guard); }
  Array doubles() const { return Array(POPNORM_F64, c_.channels, Placement::ends_at_guard); }
  Block block() const { return {c_.samples, c_.positions, c_.channels, c_.scattered ? index_.data() : nullptr}; }
  const Kernels& kernels(const KernelTable& table) const { return table.kernels[c_.storage][c_.form]; }

  std::int64_t row_stride() const { return c_.form == 0 ? c_.positions : c_.channels; }
  Input input(const Array& a) const { return {a.data(), c_.positions * c_.channels, row_stride()}; }
  Output output(Array& a) const { return {a.data(), c_.positions * c_.channels, row_stride()}; }

  std::int64_t at(const Place& p) const {
    return c_.form == 0 ? (p.sample * c_.channels + p.channel) * c_.positions + p.position
                        : (p.sample * c_.positions + p.position) * c_.channels + p.channel;
  }

  // Calls visit(place) for the block's elements of one channel, or of all.
  template <class Visit>
  void each_of(std::int64_t channel, const Visit& visit) const {
    for (std::size_t k = 0; k < index_.size(); ++k)
      for (std::int64_t s = 0; s < c_.positions; ++s) visit(Place{k, index_[k], s, channel});
  }
  template <class Visit>
  void each(const Visit& visit) const {
    for (std::int64_t c = 0; c < c_.channels; ++c) each_of(c, visit);
  }

  // The coefficients of a block's samples: one row for all, or one of kRows for each.
  static constexpr std::int64_t kRows = 3;
  std::int64_t pitch() const { return c_.channels + 3; }
  RowChoice choice(bool chosen) const { return chosen ? RowChoice{row_.data(), pitch()} : RowChoice{}; }
  std::int64_t coefficient(const Place& p, bool chosen) const { return (chosen ? row_[p.k] * pitch() : 0) + p.channel; }

  // Calls body(T()) with the type that it is computed in.
  template <class Body>
  void with_type(const Body& body) const {
    type() == POPNORM_F64 ? body(0.0) : body(0.F);
  }

  // Runs an elementwise kernel, run(kernels, output, stores), with every kind of stores at several alignments of its output,
  // and expects value(place), to the bit, and nothing beside the block.
  template <class Run, class Value>
  void expect_elements(const std::vector<Stores>& kinds, const Run& run, const Value& value) const {
    for (const KernelTable* table : runnable_tables())
      for (const Stores stores : kinds)
        for (const std::int64_t offset : {0, 1, 3}) {
          const Placement where = offset == 0 ? Placement::ends_at_guard : Placement::begins_at_guard;
          Array out(type(), x_.count(), where, offset);
          run(kernels(*table), out, stores);
          std::vector<bool> written(static_cast<std::size_t>(out.count()));
          each([&](const Place& p) {
            written[static_cast<std::size_t>(at(p))] = true;
            ASSERT_TRUE(same_bits(out.get(at(p)), stored(type(), static_cast<double>(value(p)))))
                << table->isa << " stores " << static_cast<int>(stores) << " offset " << offset << " sample "
                << p.sample << " position " << p.position << " channel " << p.channel;
          });
          for (std::size_t e = 0; e < written.size(); ++e)
            ASSERT_TRUE(written[e] || std::isnan(out.get(static_cast<std::int64_t>(e))))
                << "the other group was written";
          EXPECT_TRUE(out.buffer().margins_intact());
        }
  }

  Real unit() const { return arithmetic_of(type()).unit; }

  const Case& c_ = GetParam();
  Random random_;
  std::vector<std::int32_t> index_, row_;
  std::int64_t all_ = 0;
  Array x_, dy_, hi_, invstd_, a_, k1_, k2_;
};

}  // namespace popnorm_test

#endif
