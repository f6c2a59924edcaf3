// What one ISA tier offers. The same table drives dispatch, tests and bench.
//
// Kernels see blocks and coefficient rows, never problems: who is normalized with whom, epsilon, parameter types and
// statistics sources are resolved before. They own no threads and no memory.
//
// T is the storage type; Arithmetic<T>, float or double, is what it is computed in and what rows of coefficients are. All strides
// are in elements.
#ifndef POPNORM_CPU_KERNEL_TABLE_HPP
#define POPNORM_CPU_KERNEL_TABLE_HPP

#include <cstdint>

#include "kernels/activation.hpp"

namespace popnorm::cpu {

// Samples x positions x channels of a tensor. Sample k of the block is sample index[k], or k where index is null, so
// that the samples of one group need not be neighbours. Tensors carry their own strides (`row` separates channels in
// the rows form, positions in the columns form).
struct Block {
  std::int64_t samples;
  std::int64_t positions;
  std::int64_t channels;
  const std::int32_t* index;
};

// Which row of coefficients sample k of a block has: row[k], `pitch` elements apart; the first where row is null.
struct RowChoice {
  const std::int32_t* row = nullptr;
  std::int64_t pitch = 0;
};

// Frequency weights of a block's elements, by sample (not by place in the block) and position; 0 = absent, never read into
// arithmetic. Either weights, or lengths: then position s of sample i is present where s < length[i].
struct Weights {
  const float* first = nullptr;
  std::int64_t sample = 0;
  std::int64_t position = 0;  // 0 or 1
  const std::int64_t* length = nullptr;
  std::int64_t s0 = 0;  // the block's first position, for lengths
};

// `next`: what the caller reads after this block, prefetched; null = nothing. A block of about the same shape, or, in the
// columns form with an index, as many elements as the block has.
struct Input {
  const void* first;
  std::int64_t sample;
  std::int64_t row;
  const void* next = nullptr;
};
struct Output {
  void* first;
  std::int64_t sample;
  std::int64_t row;
};

// How output is written. Streaming stores are non-temporal where whole cache lines are written; the data is not read back
// into cache. In four streams: to four places in turn, each read ahead. Other threads may rely on them after a store
// fence, which is the scheduler's.
enum class Stores { ordinary, streaming, four_streams };

// Per channel of the block: mean and m2 of x. The block is one slot: at most 2^26 positions.
struct MomentsArgs {
  Block block;
  Input x;
  double* mean;
  double* m2;
};

// y = (x - hi)*s + b, with a row of Arithmetic<T> each.
struct NormalizeArgs {
  Block block;
  Input x;
  Output y;
  const void* hi;
  const void* s;
  const void* b;
  Stores stores;
  RowChoice rows = {};
};

// Per channel of the block: sum(dy) and sum(dy*(x - hi)).
struct BackwardReduceArgs {
  Block block;
  Input x;
  Input dy;
  const void* hi;
  double* sum_dy;
  double* sum_dy_d;
};

// dx = (a*dy - k1) - ((x - hi)*invstd)*k2.
struct BackwardApplyArgs {
  Block block;
  Input x;
  Input dy;
  Output dx;
  const void* hi;
  const void* invstd;
  const void* a;
  const void* k1;
  const void* k2;
  Stores stores;
  RowChoice rows = {};
};

// y = activation((x - hi)*s + b + residual). residual.first null: none, nor a mask. mask.first not null: which elements the
// activation did not stop, a bit each: element i of a row has bit i % 8 of byte i / 8, strides are in bytes. Blocks begin at
// a byte; one that ends within a byte ends its row, and clears the rest.
struct FusedNormalizeArgs {
  NormalizeArgs of;
  Activation activation = {};
  Input residual = {};
  Output mask = {};
};

// The gradient g of what an activation was applied to: dy, or what the activation makes of it where it stopped. That is told
// by a mask, or recomputed as (x - hi)*s + b; where there is neither, nothing was stopped.
struct GradientArgs {
  Activation activation = {};
  Input mask = {};
  const void* s = nullptr;
  const void* b = nullptr;
};

// Per channel of the block: sum(g) and sum(g*(x - hi)).
struct FusedBackwardReduceArgs {
  BackwardReduceArgs of;
  GradientArgs gradient = {};
};

// dresidual = g, if asked for (not where it is recomputed), and dx = (a*g - k1) - ((x - hi)*invstd)*k2, or a*g - k1 where
// statistics are `constant`.
struct FusedBackwardApplyArgs {
  BackwardApplyArgs of;
  GradientArgs gradient = {};
  Output dresidual = {};
  bool constant = false;
};

// The same with weights. weight: per channel of the block (all the same), beside mean and m2.
struct WeightedMomentsArgs {
  MomentsArgs of;
  Weights weights;
  double* weight;
};
// Sums over what is present; the weights do not multiply.
struct WeightedBackwardReduceArgs {
  FusedBackwardReduceArgs of;
  Weights weights;
};
// y = 0, and a bit of 0, where absent.
struct WeightedNormalizeArgs {
  FusedNormalizeArgs of;
  Weights weights;
};
// dx = (a*g - w*k1) - ((x - hi)*invstd)*(w*k2); dx = dresidual = 0 where absent.
struct WeightedBackwardApplyArgs {
  FusedBackwardApplyArgs of;
  Weights weights;
};

// Between the sweeps: `channels` channels side by side. Arrays of Arithmetic<T> unless they are double.

// Slots whose partial results belong together: first, first + stride, ... Slot s has its results `pitch` elements after
// those of slot s - 1.
struct SlotList {
  std::int64_t count;
  std::int64_t first;
  std::int64_t stride;
  std::int64_t pitch;
};

// mean[c], m2[c], and the weight, of all slots merged; weight 0, mean 0, m2 0 of none. Slot s weighs
// slot_weight[s*weight_pitch]; what lies in a slot of weight 0 does not matter.
struct MergeMomentsArgs {
  SlotList slots;
  std::int64_t channels;
  const double* slot_weight;
  std::int64_t weight_pitch;
  const double* slot_mean;
  const double* slot_m2;
  double* weight;  // one
  double* mean;
  double* m2;
};

// What normalizes by a batch's moments.
struct StatisticsArgs {
  std::int64_t channels;
  double epsilon;
  double weight;
  const double* mean;
  const double* m2;
  double* exact_invstd;
  void* hi;
  void* lo;
  void* invstd;
};

// y = (x - hi)*s + b of statistics and of parameters, f64 where `wide`; null: scale 1, shift 0.
struct NormalizeRowArgs {
  std::int64_t channels;
  const void* hi;
  const void* lo;
  const void* invstd;
  const void* scale;
  const void* shift;
  bool wide;
  void* out_hi;
  void* s;
  void* b;
};

// sum(dy) and sum(dy*xhat) of all slots, in double.
struct MergeSumsArgs {
  SlotList slots;
  std::int64_t channels;
  const double* slot_dy;
  const double* slot_dy_d;
  const void* lo;
  const void* invstd;
  double* dy;
  double* dy_xhat;
};

// dx = (a*dy - k1) - ((x - hi)*invstd)*k2 of statistics and of the sums of everything that shared them, of scale*dy where
// `scaled`. Statistics are constants where `constant`, and in channels of weight 0. d and r2: of renormalization, or null.
struct GradientRowArgs {
  std::int64_t channels;
  const void* hi;
  const void* lo;
  const void* invstd;
  const void* scale;
  const double* weight;  // [channels], or null:
  double weight_of_all;
  const void* d;
  const void* r2;
  const double* sum_dy;
  const double* sum_dy_xhat;
  bool scaled;
  bool constant;
  void* out_hi;
  void* out_invstd;
  void* a;
  void* k1;
  void* k2;
};

// The kernels of one form and storage type.
struct Kernels {
  void (*moments)(const MomentsArgs&);
  void (*normalize)(const NormalizeArgs&);
  void (*backward_reduce)(const BackwardReduceArgs&);
  void (*backward_apply)(const BackwardApplyArgs&);
  void (*fused_normalize)(const FusedNormalizeArgs&);
  void (*fused_backward_reduce)(const FusedBackwardReduceArgs&);
  void (*fused_backward_apply)(const FusedBackwardApplyArgs&);
  void (*weighted_moments)(const WeightedMomentsArgs&);
  void (*weighted_normalize)(const WeightedNormalizeArgs&);
  void (*weighted_backward_reduce)(const WeightedBackwardReduceArgs&);
  void (*weighted_backward_apply)(const WeightedBackwardApplyArgs&);
  void (*merge_moments)(const MergeMomentsArgs&);
  void (*statistics)(const StatisticsArgs&);
  void (*normalize_row)(const NormalizeRowArgs&);
  void (*merge_sums)(const MergeSumsArgs&);
  void (*gradient_row)(const GradientRowArgs&);
};

enum class Storage { f32, f64, bf16, f16 };
inline constexpr int kStorages = 4;
inline constexpr int kForms = 2;

struct KernelTable {
  const char* isa;
  const Kernels* kernels[kStorages];  // [Storage][Form]
};

}  // namespace popnorm::cpu

#endif
