/* popnorm: batch normalization kernels. The C ABI (C11, C++20).
 *
 * A *problem* says what is normalized: N samples x C channels x S positions (all spatial dimensions collapsed; S = 1 is
 * BatchNorm1d), a layout, storage types, strides and epsilon. A *plan* is the immutable, thread-shareable result of
 * validating a problem and choosing an implementation. Every run entry takes (plan, one argument struct, stream).
 *
 *   problem --popnorm_plan_create--> plan --popnorm_plan_query--> sizes of workspace and reserve
 *   forward  = moments -> finalize -> normalize             popnorm_forward
 *   backward = backward_reduce -> backward_apply            popnorm_backward
 *
 * Shapes.    x, y, residual, dy, dx, dresidual: N x C x S elements in `layout`, with the problem's strides.
 *            scale, shift, dscale, dshift: [affine_slots][C], of type `parameters`.
 *            mean, variance, running_*: [population_slots][C], of type `statistics`.
 *            moments: [groups][C], always double.
 *            saved_*, of type `statistics`, and sums, always double: [rows][C]. A row holds the statistics that normalize
 *            some of the samples: one per group, or one per population slot where statistics are given.
 *            groups, population_slots and affine_slots are 1 for plain batch normalization.
 *
 * Formulas.  (Ioffe & Szegedy 2015; moments by Chan, Golub & LeVeque 1983; Wu & Johnson 2021) Over the elements of a group,
 *            W = sum(w), mean = sum(w*x)/W, m2 = sum(w*(x-mean)^2), variance = m2/W (biased; unbiased is m2/(W-1)),
 *            invstd = 1/sqrt(variance + epsilon), xhat = (x-mean)*invstd, y = scale*xhat + shift,
 *            dshift = sum(dy), dscale = sum(dy*xhat) over the samples of an affine slot,
 *            dx = invstd*(scale*dy - (w/W)*(A + xhat*B)), A = sum(scale*dy), B = sum(scale*dy*xhat) over the group
 *            through batch statistics, dx = scale*invstd*dy with given statistics. w = 1 unless the problem has weights.
 *            Error bounds: docs/numerics.md.
 *
 * Aliasing.  y may be x or residual, dx may be dy or x, dresidual may be dy or x (same pointer and same strides), and what
 *            is updated may be the source of this call's statistics. No other output may overlap an input or another
 *            output; overlap is found and refused (POPNORM_INVALID).
 *
 * Errors.    Every entry returns a status. On POPNORM_INVALID and POPNORM_UNSUPPORTED nothing was written to the caller's
 *            buffers; otherwise, but for POPNORM_SUCCESS, outputs are incomplete, and on the CPU a reserve that was being written
 *            is refused by what reads it. popnorm_last_error() says which subject had which value, the rule it broke, and the
 *            remedy.
 *            POPNORM_INVALID: the call can never be right. POPNORM_UNSUPPORTED: a sensible call that this version,
 *            build or machine does not serve.
 *
 * Structs    begin with `size`, filled by the POPNORM_..._INIT macros together with the defaults. Zero means default
 *            for pointers, strides and enums; numbers mean what they say. A larger struct than this library knows is
 *            accepted if the bytes beyond are zero, else POPNORM_UNSUPPORTED.
 *
 * Results    are the same bits for any number of threads, any executor, any schedule and any instruction set
 *            (popnorm_numerics_version() changes when bits change), whatever rounding mode the caller has set. CUDA has bits of
 *            its own, which a new version of the library may change.
 *
 * Threads.   Plans may be shared. Concurrent calls need distinct workspaces and outputs. Nothing allocates in a run
 *            entry except what oneTBB allocates for its tasks.
 */
#ifndef POPNORM_POPNORM_H
#define POPNORM_POPNORM_H

#include <popnorm/version.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(POPNORM_STATIC)
#define POPNORM_API __attribute__((visibility("default")))
#else
#define POPNORM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ status, version */

typedef enum popnorm_status {
  POPNORM_SUCCESS = 0,
  POPNORM_INVALID = 1,       /* an argument breaks a rule */
  POPNORM_UNSUPPORTED = 2,   /* valid, but not served by this version, build or machine */
  POPNORM_OUT_OF_MEMORY = 3, /* popnorm_plan_create; in a run entry, oneTBB had no memory for its tasks */
  POPNORM_INTERNAL = 4 /* a caller's executor failed to run every task, CUDA did not launch, or a defect of popnorm */
} popnorm_status;

/* The enumerator's name, e.g. "POPNORM_INVALID"; "unknown popnorm_status" for other numbers. Never null. */
POPNORM_API const char* popnorm_status_string(popnorm_status status);

/* The message of the last entry that failed on this thread, "" if none has. Valid until the next popnorm call on this
 * thread: copy it at once. */
POPNORM_API const char* popnorm_last_error(void);

/* major * 10000 + minor * 100 + patch of the linked library. */
POPNORM_API int32_t popnorm_version(void);

/* Two libraries with the same numerics version give the same bits for the same problem on any CPU. */
POPNORM_API int32_t popnorm_numerics_version(void);

/* ------------------------------------------------------------------------------------------------ problem */

typedef enum popnorm_type {
  POPNORM_TYPE_DEFAULT = 0, /* storage: f32; parameters and statistics: f64 for f64 storage, else f32 */
  POPNORM_F32 = 1,
  POPNORM_F64 = 2,
  POPNORM_BF16 = 3, /* storage only: computed in f32, y and dx rounded once to nearest even */
  POPNORM_F16 = 4   /* likewise; what rounds beyond 65504 is stored as infinity */
} popnorm_type;

typedef enum popnorm_layout {
  POPNORM_NCHW = 0, /* channels first: [N][C][S] */
  POPNORM_NHWC = 1  /* channels last:  [N][S][C] */
} popnorm_layout;

/* Strides in elements. 0 = packed, and never a broadcast: a tensor that a framework has expanded (dy of a sum, with strides of 0)
 * must be made whole first, nothing tells it from a packed one. Contiguous are the S positions of a (sample, channel) in NCHW,
 * the C channels of a (sample, position) in NHWC; `row` is the distance between two such rows of one sample, `sample` between two samples.
 * A channel slice of a concatenated tensor has the strides of the whole. Rows may not overlap one another. */
typedef struct popnorm_strides {
  int64_t sample;
  int64_t row;
} popnorm_strides;

/* What the batch is: a map gives every sample n an id. */
typedef enum popnorm_map_kind {
  POPNORM_WHOLE = 0,      /* all samples 0. k must be 0 */
  POPNORM_CONTIGUOUS = 1, /* n / k: k neighbours each, the last id's maybe fewer. Ghost BN; one id per worker's share */
  POPNORM_STRIDED = 2,    /* n % k: k ids dealt in turn */
  POPNORM_PER_SAMPLE = 3, /* n. Instance normalization, as norm_group. k must be 0 */
  POPNORM_LABELS = 4      /* any: int32 ids in [0, k) come with each call (popnorm_batch). Domains, permuted groups */
} popnorm_map_kind;

typedef struct popnorm_map {
  popnorm_map_kind kind;
  int64_t k;
} popnorm_map;

/* Weights are frequency weights: an element of weight 3 counts as if it were there three times, one of weight 0 is absent:
 * x and dy there never enter arithmetic (they may be NaN), y = 0 and dx = 0 are written. A mask is a weight of 0 or 1.
 * The sums of backward are over the elements that are present, unweighted. */
typedef enum popnorm_weights {
  POPNORM_UNWEIGHTED = 0,
  POPNORM_WEIGHTS_PER_SAMPLE = 1,   /* float[n] */
  POPNORM_WEIGHTS_PER_POSITION = 2, /* float[n][s], packed */
  POPNORM_LENGTHS =
      3 /* int64_t[n]: positions [0, length) of a sample are present with weight 1, those beyond are absent */
} popnorm_weights;

/* What follows normalization in the same sweep: y = f(z), z = scale*xhat + shift (+ residual), in the arithmetic type,
 * before y is rounded to storage. Whether z <= 0 decides both y and the gradient: dz = f'(z)*dy with f'(0) that of z < 0;
 * where z is NaN, y is NaN and dz is dy. Absent elements (of weight 0) have y = dx = dresidual = 0. Without a residual
 * backward recomputes the sign of z from x, to the bit as forward computed it; with one, forward (or normalize) leaves a
 * bit per element in the reserve. Not served (UNSUPPORTED): in popnorm_double_backward; saved_* instead of a reserve. */
typedef enum popnorm_activation {
  POPNORM_IDENTITY = 0,
  POPNORM_RELU = 1,      /* z > 0: z; else +0, also for -0 and -infinity */
  POPNORM_LEAKY_RELU = 2 /* z > 0: z; else slope*z */
} popnorm_activation;

typedef struct popnorm_problem {
  size_t size;
  int64_t n; /* samples, >= 0; an empty batch is valid and changes nothing */
  int64_t c; /* channels, >= 1 */
  int64_t s; /* positions, >= 0 */
  popnorm_layout layout;
  popnorm_type storage;    /* of x, y, dy, dx, residual, dresidual */
  popnorm_type parameters; /* of scale, shift, dscale, dshift: f32 or f64 */
  popnorm_type statistics; /* of mean, variance, saved_*, running_*: f32 or f64 */
  double epsilon;          /* finite, >= 0; with epsilon = 0 a channel of variance 0 has invstd 0 */
  popnorm_strides x;
  popnorm_strides y;
  popnorm_strides dy;
  popnorm_strides dx;
  popnorm_map norm_group;      /* which samples are normalized together; a group may be empty */
  popnorm_map population_slot; /* which population statistics a sample feeds, or is normalized by */
  popnorm_map affine_slot;     /* which scale and shift apply to it */
  popnorm_weights weights;
  popnorm_strides residual;
  popnorm_strides dresidual;
  popnorm_activation activation; /* of y */
  double slope;                  /* of LEAKY_RELU: finite in the arithmetic type; ignored with another activation */
  int32_t adds_residual;         /* 1: a residual is added before the activation; 0: none is */
} popnorm_problem;

#define POPNORM_PROBLEM_INIT                                                                                          \
  {                                                                                                                   \
    sizeof(popnorm_problem), 0, 0, 0, POPNORM_NCHW, POPNORM_TYPE_DEFAULT, POPNORM_TYPE_DEFAULT, POPNORM_TYPE_DEFAULT, \
        1e-5, {0, 0}, {0, 0}, {0, 0}, {0, 0}, {POPNORM_WHOLE, 0}, {POPNORM_WHOLE, 0}, {POPNORM_WHOLE, 0},             \
        POPNORM_UNWEIGHTED, {0, 0}, {0, 0}, POPNORM_IDENTITY, 0.01, 0                                                 \
  }

/* What one call says of the problem's samples: ids for every map of kind LABELS, and the weights that the problem has. All
 * other pointers must be null. Ids that a call does not use are not read and may be null: norm_group with GIVEN,
 * population_slot where nothing is fed and statistics are of the BATCH, affine_slot in moments. Backward must get what
 * forward got. */
typedef struct popnorm_batch {
  const int32_t* norm_group;      /* [n], in [0, k) */
  const int32_t* population_slot; /* [n], in [0, k) */
  const int32_t* affine_slot;     /* [n], in [0, k) */
  const void* weights;            /* see popnorm_weights: finite and >= 0; lengths in [0, s] */
  /* Where arrays are on a device, which the host does not read: bits of popnorm_device_status are or'ed into this word of the
   * device for what the CPU would refuse, or null. With POPNORM_CPU it is left alone. */
  uint32_t* device_status;
} popnorm_batch;

#define POPNORM_BATCH_INIT \
  { NULL, NULL, NULL, NULL, NULL }

/* What a device found in the arrays of a call, and what it then does. Nothing out of range is ever accessed. */
typedef enum popnorm_device_status {
  /* An id outside [0, k), or none, where only the reserve tells that norm_group is needed, or population_slot: the sample is absent, y
   * and dx are 0 there; a slot so named is not fed. */
  POPNORM_DEVICE_LABEL = 1,
  /* A group whose samples feed two slots: it feeds that of its first sample. */
  POPNORM_DEVICE_SLOT = 2,
  /* A weight that is negative or not finite, a length outside [0, s]: it counts as 0; lengths beyond s as s. */
  POPNORM_DEVICE_WEIGHT = 4
} popnorm_device_status;

/* ------------------------------------------------------------------------------------------------ execution options */

typedef enum popnorm_backend {
  /* POPNORM_BACKEND=cpu|cuda|auto in the environment; else cuda where options.memory is memory of a CUDA device, or managed and plans
   * can be made for one; else cpu, as where the module that could tell is not installed. POPNORM_VERBOSE=dispatch tells. */
  POPNORM_BACKEND_AUTO = 0,
  POPNORM_CPU = 1,
  /* NVIDIA GPUs of compute capability 7.5 or later, by the module libpopnorm_cuda.so beside this library. A request
   * never falls back: UNSUPPORTED names what is missing, the module, a driver, a device, a recent enough one or
   * kernels for it. Plans are for the device that is current when they are made; `stream` is a cudaStream_t. Every
   * pointer of a run entry (tensors, parameters, labels, weights, workspace, reserve, populations, moments; not the
   * structs, nor the list of parts) is memory of that device, managed, or pinned host memory that the device reaches at
   * the same address: other host memory is INVALID. Entries only enqueue kernels on the stream: no allocation, no copy,
   * no wait. What arrays hold is checked by nobody before a
   * launch: labels and weights that the CPU would refuse are reported by popnorm_batch.device_status; no header of a
   * reserve or population is compared; popnorm_population_* take host memory. In backward_apply, sums that are null
   * although statistics are not given make dx NaN. Bits are the same from run to run and by whichever way
   * POPNORM_CUDA_POLICY names (popnorm_plan_info.policy), not those of the CPU. Not served (UNSUPPORTED): second
   * derivatives; combine of more than 128 parts where moments is one of those beyond; more than 2^31 - 1 blocks of
   * channels; `executor` is INVALID, `isa`, `schedule` and `stores` say nothing. */
  POPNORM_CUDA = 2
} popnorm_backend;

/* How work is cut. It never changes a bit of the result. */
typedef enum popnorm_schedule {
  POPNORM_SCHEDULE_AUTO = 0,
  POPNORM_SLAB = 1,  /* statistics and normalization of a channel group back to back, while it is in cache */
  POPNORM_PHASES = 2 /* all tiles' partial results, then combine, then apply */
} popnorm_schedule;

typedef enum popnorm_stores {
  POPNORM_STORES_AUTO = 0,
  POPNORM_STORES_ORDINARY = 1,
  POPNORM_STORES_STREAMING = 2 /* non-temporal where alignment permits */
} popnorm_stores;

/* A caller's own threads. parallel_for must call task(argument, i) exactly once for every i in [0, count), in any
 * order, from any threads, and return when all calls have returned. Tasks neither block nor wait for one another.
 * `concurrency` (>= 1) is how many tasks may run at once: it sizes tasks, it never changes a bit; beyond 4096 it counts as that. */
typedef struct popnorm_executor {
  size_t size;
  void* context;
  int32_t concurrency;
  void (*parallel_for)(void* context, int64_t count, void (*task)(void* argument, int64_t index), void* argument);
} popnorm_executor;

#define POPNORM_EXECUTOR_INIT \
  { sizeof(popnorm_executor), NULL, 1, NULL }

typedef struct popnorm_options {
  size_t size;
  popnorm_backend backend;
  popnorm_schedule schedule;
  popnorm_stores stores;
  const char* isa; /* a name of popnorm_isa_name; null or "": POPNORM_ISA in the environment, else the best */
  const popnorm_executor* executor; /* copied; null: oneTBB, in the arena of the thread that calls the run entry */
  const void* memory; /* for AUTO: a pointer into where tensors live, e.g. x; null: host memory. Not read */
} popnorm_options;

#define POPNORM_OPTIONS_INIT \
  { sizeof(popnorm_options), POPNORM_BACKEND_AUTO, POPNORM_SCHEDULE_AUTO, POPNORM_STORES_AUTO, NULL, NULL, NULL }

/* CPU instruction set tiers compiled into this library, best first: "avx512", "avx2", "baseline". */
POPNORM_API int32_t popnorm_isa_count(void);
/* Null if index is outside [0, popnorm_isa_count()). */
POPNORM_API const char* popnorm_isa_name(int32_t index);
/* 1 if this machine and operating system run the tier, else 0. */
POPNORM_API int32_t popnorm_isa_available(int32_t index);
/* 1 if plans can be made for the backend here, else 0. */
POPNORM_API int32_t popnorm_backend_available(popnorm_backend backend);

/* ------------------------------------------------------------------------------------------------ plan */

typedef struct popnorm_plan popnorm_plan;

/* Validates `problem` and `options` (null = defaults) and makes a plan. One allocation, a few microseconds.
 * INVALID: null problem or plan; a struct smaller than this version's; n < 0, c < 1, s < 0; a size whose bytes overflow
 *          63 bits; non-finite or negative epsilon; unknown enum values; strides that are negative or let rows overlap; a map's k < 1 where it has one, not 0 where it has none;
 *          a slope of LEAKY_RELU that is not finite, adds_residual that is neither 0 nor 1; an executor without parallel_for or
 *          concurrency < 1; an ISA, a backend in POPNORM_BACKEND, or a way in POPNORM_CUDA_POLICY, that does not exist.
 * UNSUPPORTED: types, backends, an ISA that exists but does not run here; more than 2^31 - 1 samples with a map other than
 *          WHOLE, or as many ids; struct bytes this version does not know.
 * OUT_OF_MEMORY: the allocation failed. On failure *plan is null. */
POPNORM_API popnorm_status popnorm_plan_create(const popnorm_problem* problem, const popnorm_options* options,
                                               popnorm_plan** plan);

/* Null is allowed. */
POPNORM_API void popnorm_plan_destroy(popnorm_plan* plan);

typedef struct popnorm_plan_info {
  size_t size;
  size_t workspace_bytes; /* scratch of one call: contents need not be kept, must not be shared by concurrent calls */
  size_t workspace_alignment; /* 64 */
  /* Written by forward or finalize, read by normalize and backward, of any plan of the same problem. It may be copied and moved as
   * bytes; those between its arrays are not written. */
  size_t reserve_bytes;
  size_t reserve_alignment;               /* 64 */
  popnorm_backend backend;                /* the one chosen, never AUTO */
  const char* isa;                        /* the tier chosen; static string */
  int64_t tiles;                          /* partial results per channel, at most, that are combined in fixed trees */
  size_t double_backward_workspace_bytes; /* of popnorm_double_backward */
  int64_t groups;
  int64_t population_slots;
  int64_t affine_slots;
  /* For people: how the backend goes about it and how often it expects to move a tensor's bytes T; the plan's own; "" where
   * there is nothing to choose. */
  const char* policy;
} popnorm_plan_info;

#define POPNORM_PLAN_INFO_INIT \
  { sizeof(popnorm_plan_info), 0, 0, 0, 0, POPNORM_BACKEND_AUTO, NULL, 0, 0, 0, 0, 0, NULL }

/* What the plan chose and how much memory its calls need. INVALID: null plan or info; a struct too small. UNSUPPORTED: struct bytes
 * this version does not know. */
POPNORM_API popnorm_status popnorm_plan_query(const popnorm_plan* plan, popnorm_plan_info* info);

/* ------------------------------------------------------------------------------------------------ population */

/* A population accumulates moments over time, per slot and channel, in a caller-owned flat buffer (8-byte aligned):
 *   popnorm_population_header, then 8 arrays of double[slots][c]:
 *   weight, mean, m2     pooled moments of everything fed (m2/weight is the variance of the whole)
 *   m2_within            the part of m2 that lies inside batches
 *   var_sum, var_weight  weighted sum of unbiased batch variances, and its weights: the part of `weight` that has a variance
 *   batches, nonfinite   how many batches were taken, and how many had non-finite moments in this channel
 * It may be copied with memcpy; popnorm_population_serialize makes bytes that any machine can read back. A copy kept before
 * an update rolls it back. */
typedef struct popnorm_population_header {
  char magic[8];       /* "POPNORM" and a zero */
  uint32_t version;    /* 1 */
  uint32_t byte_order; /* 0x01020304 in the writer's byte order */
  int64_t slots;
  int64_t c;
  int64_t steps; /* feeds that were taken */
  uint64_t bytes;
  uint64_t checksum; /* of the serialized form; 0 in memory */
  uint8_t room[72];  /* zero; for later versions */
} popnorm_population_header;

/* How a batch of moments B joins a population P. */
typedef enum popnorm_feed {
  /* The mixture (1-momentum)*P + momentum*B; P empty: P = B. Ioffe & Szegedy 2015. The mean is that of both means, m2/weight that of
   * both variances and momentum*(1-momentum)*(difference of means)^2 more, var_sum/var_weight that of unbiased batch variances, as
   * frameworks' running variance. */
  POPNORM_FEED_EMA = 0,
  POPNORM_FEED_CUMULATIVE = 1, /* EMA with momentum 1/(batches+1): every batch counts the same */
  POPNORM_FEED_MERGE =
      2 /* exact pooling by Chan's formula: every element counts the same. PreciseBN, Wu & Johnson 2021 */
} popnorm_feed;

typedef enum popnorm_estimator {
  POPNORM_BIASED = 0,                 /* m2/weight */
  POPNORM_UNBIASED = 1,               /* m2/(weight-1); weight <= 1: as biased */
  POPNORM_MEAN_OF_BATCH_VARIANCES = 2 /* var_sum/var_weight: what other libraries average. It omits the variance between
                                         batch means, so it is too small by about (between-sample variance)/batch size.
                                         As biased where no batch had a variance (var_weight 0) */
} popnorm_estimator;

/* Bytes of a population. INVALID: slots or c < 1, overflow, null. */
POPNORM_API popnorm_status popnorm_population_size(int64_t slots, int64_t c, size_t* bytes);

/* Writes an empty population. INVALID: as popnorm_population_size; bytes too few; population null or unaligned. */
POPNORM_API popnorm_status popnorm_population_init(void* population, size_t bytes, int64_t slots, int64_t c);

/* Three arrays of double[c] (for a population: [slots][c]), by frequency weights. */
typedef struct popnorm_moment_arrays {
  double* weight;
  double* mean;
  double* m2;
} popnorm_moment_arrays;

typedef struct popnorm_population_feed_args {
  size_t size;
  popnorm_moment_arrays moments; /* in: [slots][c] */
  popnorm_feed feed;
  double momentum; /* weight of the new batch, in [0, 1]; EMA only */
} popnorm_population_feed_args;

#define POPNORM_POPULATION_FEED_ARGS_INIT \
  { sizeof(popnorm_population_feed_args), {NULL, NULL, NULL}, POPNORM_FEED_EMA, 0.1 }

/* Feeds one batch. Per slot the batch is taken whole or not at all: if any channel's moments are non-finite, only that
 * channel's nonfinite count changes; a channel of weight 0 does not change. Weights are effective numbers of elements: EMA
 * mixes them as it mixes means. INVALID: a corrupted or foreign header, momentum outside [0, 1], null arrays, negative
 * weight or m2. UNSUPPORTED, as wherever a population is taken: a header of another version. */
POPNORM_API popnorm_status popnorm_population_feed(void* population, size_t bytes,
                                                   const popnorm_population_feed_args* args);

typedef struct popnorm_population_finalize_args {
  size_t size;
  popnorm_estimator estimator;
  popnorm_type type; /* of mean and variance: f32 (default) or f64 */
  void* mean;        /* out [slots][c], or null */
  void* variance;    /* out [slots][c], or null */
} popnorm_population_finalize_args;

#define POPNORM_POPULATION_FINALIZE_ARGS_INIT \
  { sizeof(popnorm_population_finalize_args), POPNORM_BIASED, POPNORM_TYPE_DEFAULT, NULL, NULL }

/* The population's mean and variance. INVALID: a corrupted or foreign header, unknown enums, no output, overlapping ones.
 * UNSUPPORTED: a type of 16 bits.
 * A channel that was never fed has mean 0 and variance 1 (what frameworks initialize running statistics with). */
POPNORM_API popnorm_status popnorm_population_finalize(const void* population, size_t bytes,
                                                       const popnorm_population_finalize_args* args);

/* target = the two populations pooled, slot by slot: by true weights, whatever fed them (ranks, shards, days). Exact as
 * POPNORM_FEED_MERGE is. INVALID: a corrupted or foreign header, different slots or c, the same buffer. */
POPNORM_API popnorm_status popnorm_population_combine(void* target, size_t target_bytes, const void* other,
                                                      size_t other_bytes);

/* Takes out of target what `other` holds: the inverse of popnorm_population_combine (a domain, a worker, a bad batch).
 * Digits cancel. With target's |mean|, weight and m2 before, w of the weight left, and e = 2^-53*|mean|*weight/w, the mean is
 * off by a few e and m2 by a few 2^-53*m2 + e*(sqrt(w*m2) + e*w); m2 that cancels entirely is 0. INVALID, nothing written:
 * as popnorm_population_combine; other holds more weight, batches, steps or non-finite batches than target. */
POPNORM_API popnorm_status popnorm_population_subtract(void* target, size_t target_bytes, const void* other,
                                                       size_t other_bytes);

/* Multiplies every weight by `factor` in [0, 1], so that what was fed counts less against what will be merged; mean, variance
 * and counts stay. 0 empties. Decaying by 1 - momentum before each merge is an EMA by weight. INVALID: a corrupted or foreign
 * header, factor outside [0, 1]. */
POPNORM_API popnorm_status popnorm_population_decay(void* population, size_t bytes, double factor);

/* How sure the population's mean is: error[slots][c], its standard error in units of the channel's standard deviation, which
 * is what normalization divides by: sqrt(between/(batches - 1)/m2) with between = m2 - m2_within, the part that lies between
 * batch means. Independent batches of equal weight are assumed. +Inf with fewer than two batches; 0 where the variance is 0.
 * "Enough samples" is when it is small against what the network tolerates (0.01, say). INVALID: a corrupted or foreign
 * header; error null, misaligned or overlapping. */
POPNORM_API popnorm_status popnorm_population_standard_error(const void* population, size_t bytes, double* error);

/* How far the mean and variance of `population` are from those of `reference` (EMA from exact statistics, say), over all slots
 * and channels that both have fed and whose reference variance is > 0:
 *   mean_rms = rms((mean - mean_ref)/std_ref),  log2_variance_rms = rms(log2(variance/variance_ref)), and their largest.
 * A variance of 0 against one above 0 has an infinite ratio. */
typedef struct popnorm_drift {
  size_t size;
  popnorm_estimator estimator;           /* in: of population's variance */
  popnorm_estimator reference_estimator; /* in: of reference's */
  int64_t channels;                      /* out: slots x channels compared */
  double mean_rms, mean_max;
  double log2_variance_rms, log2_variance_max;
} popnorm_drift;

#define POPNORM_DRIFT_INIT \
  { sizeof(popnorm_drift), POPNORM_BIASED, POPNORM_BIASED, 0, 0, 0, 0, 0 }

/* INVALID: a corrupted or foreign header, different slots or c, unknown enums. */
POPNORM_API popnorm_status popnorm_population_drift(const void* population, size_t bytes, const void* reference,
                                                    size_t reference_bytes, popnorm_drift* drift);

/* The population as bytes for a file: the same layout, little-endian on every machine, with a checksum (CRC-64/XZ of all other
 * bytes) in the header. `to` has at least the population's bytes and may not overlap it. INVALID, nothing written: a corrupted or
 * foreign header, to null, too small or overlapping. */
POPNORM_API popnorm_status popnorm_population_serialize(const void* population, size_t bytes, void* to,
                                                        size_t to_bytes);

/* Reads such bytes back; `population` has room for them (popnorm_population_size). INVALID, nothing written: truncated or
 * damaged bytes, too little room. UNSUPPORTED: another version, or damage to the bytes that say which. */
POPNORM_API popnorm_status popnorm_population_deserialize(const void* from, size_t from_bytes, void* population,
                                                          size_t bytes);

/* ------------------------------------------------------------------------------------------------ forward, backward */

typedef enum popnorm_statistics {
  POPNORM_BATCH = 0, /* of this batch, per group: ordinary training; "mini-batch statistics in inference" */
  POPNORM_GIVEN =
      1, /* handed in, per population slot: ordinary inference; "population statistics in training" (FrozenBN) */
  /* The mixture of both distributions, share*given + (1-share)*batch:
   *   mean = (1-share)*m_b + share*m_g,  variance = (1-share)*v_b + share*v_g + share*(1-share)*(m_b-m_g)^2
   * (test-time normalization, Lim et al. 2023). Given statistics are constants in backward, whose gradient is that of BATCH
   * with W/(1-share) in place of W. */
  POPNORM_BLEND = 2,
  /* Batch renormalization (Ioffe 2017): xhat = r*(x-m_b)/s_b + d with s = sqrt(variance + epsilon),
   *   r = s_b/s_g clipped to [1/renorm_r, renorm_r], d = (m_b-m_g)/s_g clipped to [-renorm_d, renorm_d],
   * both constants in backward. Where s_g is 0 they are renorm_r and +-renorm_d (0 for equal means). y is exactly shift where s_b
   * is 0, and where r or d would be infinite. */
  POPNORM_RENORM = 3
} popnorm_statistics;

/* Where statistics come from. GIVEN, BLEND, RENORM need the statistics of the population slots: either mean and variance
 * (finite mean, variance >= 0 are the caller's duty), or a population. BATCH needs none, all must be null. */
typedef struct popnorm_source {
  popnorm_statistics statistics;
  popnorm_estimator estimator; /* of the population */
  const void* mean;
  const void* variance;
  const void* population;
  size_t population_bytes;
  double share;    /* BLEND: the weight of the given statistics, in [0, 1] */
  double renorm_r; /* RENORM: >= 1 */
  double renorm_d; /* RENORM: >= 0 */
} popnorm_source;

#define POPNORM_SOURCE_INIT \
  { POPNORM_BATCH, POPNORM_BIASED, NULL, NULL, NULL, 0, 0.5, 3, 5 }

/* What a batch's moments update; not with GIVEN. Every group must feed one slot: all of a group's samples have the same
 * population_slot. The groups that feed a slot are merged into one batch: one update per call and slot.
 * running_* follow PyTorch's rule, (1-momentum)*running + momentum*new with the unbiased variance; running_variance is left
 * untouched where W <= 1, both where W = 0. Either of the two may be null. A population is fed as popnorm_population_feed
 * does: a slot's batch is taken whole, or not at all where moments are not finite. */
typedef struct popnorm_update {
  void* running_mean;
  void* running_variance;
  void* population;
  size_t population_bytes;
  popnorm_feed feed;
  double momentum; /* weight of the new batch, in [0, 1]; of running_* and of EMA */
} popnorm_update;

#define POPNORM_UPDATE_INIT \
  { NULL, NULL, NULL, 0, POPNORM_FEED_EMA, 0.1 }

/* y = activation(scale*(x-mean)*invstd + shift + residual).
 *                     statistics from the batch                  statistics = GIVEN
 *   training          update running_* or a population, reserve  reserve
 *   inference         no update, no reserve                      no reserve */
typedef struct popnorm_forward_args {
  size_t size;
  const void* x;
  void* y;           /* may be x */
  const void* scale; /* null = 1 */
  const void* shift; /* null = 0 */
  popnorm_batch batch;
  popnorm_source source;
  popnorm_update update;
  /* Optional outputs: mean and invstd used, rounded to `statistics` (with RENORM m_b - d*s_b/r and r/s_b); the batch's moments (not
   * with GIVEN; all three). */
  void* saved_mean;
  void* saved_invstd;
  popnorm_moment_arrays moments;
  void* reserve; /* what backward needs; null if there is no backward */
  size_t reserve_bytes;
  void* workspace;
  size_t workspace_bytes;
  const void* residual; /* added before the activation; null unless the problem adds one. y may be it */
} popnorm_forward_args;

#define POPNORM_FORWARD_ARGS_INIT                                                                  \
  {                                                                                                \
    sizeof(popnorm_forward_args), NULL, NULL, NULL, NULL, POPNORM_BATCH_INIT, POPNORM_SOURCE_INIT, \
        POPNORM_UPDATE_INIT, NULL, NULL, {NULL, NULL, NULL}, NULL, 0, NULL, 0, NULL                \
  }

/* INVALID: null x or y (for a non-empty batch); null workspace; unknown enum values; a residual that the problem
 * does not add, or none where it does; overlap (see Aliasing); unaligned base pointers; workspace or reserve too
 * small; labels or weights that the problem has not, missing ones, ones out of range; momentum or share outside [0,
 * 1], renorm_r < 1, renorm_d < 0; given statistics with BATCH, missing with another source; an update or moments
 * with GIVEN; a group that feeds two slots, with an update, BLEND or RENORM; a corrupted or foreign population, or
 * one with another slot or channel count. */
POPNORM_API popnorm_status popnorm_forward(const popnorm_plan* plan, const popnorm_forward_args* args, void* stream);

/* Any subset of dx, dscale, dshift, dresidual. dresidual is the gradient of what was activated, of which all others are
 * gradients in turn. The gradient goes through batch statistics or treats given ones as constant, as the
 * forward that wrote the reserve did. */
typedef struct popnorm_backward_args {
  size_t size;
  const void* x;
  const void* dy;
  popnorm_batch batch; /* as in forward */
  void* dx;            /* or null; may be dy or x */
  void* dscale;        /* or null */
  void* dshift;        /* or null */
  int32_t accumulate;  /* 1: dscale and dshift are added to; 0: overwritten */
  const void* reserve;
  size_t reserve_bytes;
  /* Instead of a reserve, for an unweighted problem whose maps are all WHOLE: the saved outputs of forward, its scale and
   * its statistics, BATCH or GIVEN. The mean has then been rounded to `statistics`, which adds an error of
   * u*|mean|*invstd per unit of xhat to dx and dscale. */
  const void* saved_mean;
  const void* saved_invstd;
  const void* scale;             /* null = 1; only with saved_*: a reserve holds the scale that forward used */
  popnorm_statistics statistics; /* only with saved_* */
  void* workspace;
  size_t workspace_bytes;
  void* dresidual; /* or null; only if the problem adds a residual. May be dy or x */
} popnorm_backward_args;

#define POPNORM_BACKWARD_ARGS_INIT                                                                                 \
  {                                                                                                                \
    sizeof(popnorm_backward_args), NULL, NULL, POPNORM_BATCH_INIT, NULL, NULL, NULL, 0, NULL, 0, NULL, NULL, NULL, \
        POPNORM_BATCH, NULL, 0, NULL                                                                               \
  }

/* INVALID: as popnorm_forward; no output at all; neither or both of reserve and saved_*; a reserve of another C, storage type,
 * activation, count of groups or slots, or other maps or labels (N, S, layout and epsilon are the caller's care, unless there is a
 * mask: synchronized statistics come from other samples), or that lacks the bits of normalize; accumulate outside
 * {0, 1}; dresidual where the problem adds no residual. UNSUPPORTED: saved_* with maps, weights, BLEND, RENORM or an
 * activation. */
POPNORM_API popnorm_status popnorm_backward(const popnorm_plan* plan, const popnorm_backward_args* args, void* stream);

/* ------------------------------------------------------------------------------------------------ the six operations */

/* Each stage alone, for synchronized BN, gradient accumulation, and fusion into a producer or consumer. Composed on one
 * device they give the same bits as forward and backward. */

typedef struct popnorm_moments_args {
  size_t size;
  const void* x;
  popnorm_batch batch;
  popnorm_moment_arrays moments; /* out [groups][c], overwritten; null (all three) if only the update is wanted */
  popnorm_update update;
  void* workspace;
  size_t workspace_bytes;
} popnorm_moments_args;

#define POPNORM_MOMENTS_ARGS_INIT \
  { sizeof(popnorm_moments_args), NULL, POPNORM_BATCH_INIT, {NULL, NULL, NULL}, POPNORM_UPDATE_INIT, NULL, 0 }

/* moments = those of x per group, and what they update: a pass that only takes statistics, such as PreciseBN's.
 * INVALID: as popnorm_forward; neither moments nor an update. */
POPNORM_API popnorm_status popnorm_moments(const popnorm_plan* plan, const popnorm_moments_args* args, void* stream);

typedef struct popnorm_combine_args {
  size_t size;
  const popnorm_moment_arrays* parts; /* [count], each of [groups][c] */
  int64_t count;                      /* >= 0; no parts give weight 0, mean 0, m2 0 */
  popnorm_moment_arrays moments;      /* out; may be one of the parts */
} popnorm_combine_args;

#define POPNORM_COMBINE_ARGS_INIT                               \
  {                                                             \
    sizeof(popnorm_combine_args), NULL, 0, { NULL, NULL, NULL } \
  }

/* moments = parts merged by Chan's formula along a balanced binary tree in the order given: ranks, micro-batches, shards.
 * Two parts merge to the same bits in either order. INVALID: null arrays, count < 0, negative weight or m2, overlap. */
POPNORM_API popnorm_status popnorm_combine(const popnorm_plan* plan, const popnorm_combine_args* args, void* stream);

typedef struct popnorm_finalize_args {
  size_t size;
  const void* scale;             /* null = 1 */
  const void* shift;             /* null = 0 */
  popnorm_moment_arrays moments; /* in [groups][c]; weight may exceed the batch's (synchronized BN). GIVEN: null */
  popnorm_source source;
  popnorm_update update;
  /* [groups], in [0, population_slots): the slot that each group feeds and is blended or renormalized with. Needed for
   * these where there are several slots, else null. */
  const int32_t* group_slot;
  void* saved_mean; /* optional outputs, as in popnorm_forward_args */
  void* saved_invstd;
  void* reserve; /* out, required */
  size_t reserve_bytes;
} popnorm_finalize_args;

#define POPNORM_FINALIZE_ARGS_INIT                                                                                 \
  {                                                                                                                \
    sizeof(popnorm_finalize_args), NULL, NULL, {NULL, NULL, NULL}, POPNORM_SOURCE_INIT, POPNORM_UPDATE_INIT, NULL, \
        NULL, NULL, NULL, 0                                                                                        \
  }

/* Turns moments (or given statistics) into the reserve: per channel {hi, lo, invstd}, weight, and the scale and shift used.
 * INVALID: as popnorm_forward; negative weight or m2 in moments; group_slot missing, out of range, or not null where it must be. */
POPNORM_API popnorm_status popnorm_finalize(const popnorm_plan* plan, const popnorm_finalize_args* args, void* stream);

typedef struct popnorm_normalize_args {
  size_t size;
  const void* x;
  void* y; /* may be x */
  popnorm_batch batch;
  void* reserve; /* only written with a residual and an activation: where z > 0 */
  size_t reserve_bytes;
  void* workspace;
  size_t workspace_bytes;
  const void* residual; /* as in popnorm_forward_args */
} popnorm_normalize_args;

#define POPNORM_NORMALIZE_ARGS_INIT \
  { sizeof(popnorm_normalize_args), NULL, NULL, POPNORM_BATCH_INIT, NULL, 0, NULL, 0, NULL }

/* y from x, the residual and the reserve. INVALID: as popnorm_forward and popnorm_backward. */
POPNORM_API popnorm_status popnorm_normalize(const popnorm_plan* plan, const popnorm_normalize_args* args,
                                             void* stream);

/* Sums over the samples of a statistics row, what a backward through statistics needs of everybody who shared them. With
 * one affine slot they are those of dy, which are also dshift and dscale. With several, each dy is multiplied by its
 * sample's scale first (A and B of the formulas above): samples of several slots may share a row. dy stands for the
 * gradient of what was activated. */
typedef struct popnorm_backward_reduce_args {
  size_t size;
  const void* x;
  const void* dy;
  popnorm_batch batch;
  const void* reserve;
  size_t reserve_bytes;
  double* sum_dy;      /* out [rows][c] */
  double* sum_dy_xhat; /* out [rows][c] */
  void* dscale;        /* optional out [affine_slots][c] of type `parameters` */
  void* dshift;        /* optional out [affine_slots][c] */
  void* workspace;
  size_t workspace_bytes;
} popnorm_backward_reduce_args;

#define POPNORM_BACKWARD_REDUCE_ARGS_INIT \
  { sizeof(popnorm_backward_reduce_args), NULL, NULL, POPNORM_BATCH_INIT, NULL, 0, NULL, NULL, NULL, NULL, NULL, 0 }

/* The sums of backward; synchronized BN and gradient accumulation add them over ranks or micro-batches.
 * INVALID: as popnorm_backward. */
POPNORM_API popnorm_status popnorm_backward_reduce(const popnorm_plan* plan, const popnorm_backward_reduce_args* args,
                                                   void* stream);

typedef struct popnorm_backward_apply_args {
  size_t size;
  const void* x;
  const void* dy;
  void* dx; /* may be dy or x; or null, if dresidual is not */
  popnorm_batch batch;
  const void* reserve;
  size_t reserve_bytes;
  /* As backward_reduce gives them, over everything that shared the statistics; ignored with GIVEN, may then be null. */
  const double* sum_dy;
  const double* sum_dy_xhat;
  void* workspace;
  size_t workspace_bytes;
  void* dresidual; /* as in popnorm_backward_args */
} popnorm_backward_apply_args;

#define POPNORM_BACKWARD_APPLY_ARGS_INIT \
  { sizeof(popnorm_backward_apply_args), NULL, NULL, NULL, POPNORM_BATCH_INIT, NULL, 0, NULL, NULL, NULL, 0, NULL }

/* dx and dresidual from x, dy, the sums and the reserve (whose weight divides the sums). INVALID: as popnorm_backward. */
POPNORM_API popnorm_status popnorm_backward_apply(const popnorm_plan* plan, const popnorm_backward_apply_args* args,
                                                  void* stream);

/* ------------------------------------------------------------------------------------------------ double backward */

/* The gradient of backward. With backward the function (x, dy, scale) -> (dx, dscale, dshift) and v, v_scale, v_shift the
 * cotangents of its results:
 *   grad_dy    = a*v - k1 - xhat*k2,  a = scale*invstd, k1 = a*mean(v) - v_shift, k2 = a*mean(v*xhat) - v_scale
 *   grad_scale = invstd*(sum(v*dy) - W*mean(v)*mean(dy) - W*mean(v*xhat)*mean(dy*xhat))
 *   grad_x     = -a*invstd*(p*v + q*dy - (p*mean(v) + q*mean(dy)) + xhat*(mean(v*dy) - mean(v)*mean(dy) - 3*p*q))
 *                + v_scale*invstd*(dy - mean(dy) - xhat*p),       p = mean(dy*xhat), q = mean(v*xhat)
 * through batch statistics, means over a group; with given ones grad_dy = a*v + v_shift + xhat*v_scale,
 * grad_scale = invstd*sum(v*dy), grad_x = v_scale*invstd*dy. Composed from the operations above: one sweep for grad_dy, two
 * for grad_x (one with given statistics), and of sums one over (v, dy) if there is v and through batch statistics one over (x, dy) and, for v, (x, v).
 * There is no entry for third derivatives: a framework must refuse them rather than differentiate this call. */
typedef struct popnorm_double_backward_args {
  size_t size;
  const void* x;
  const void* dy;
  const void* v;       /* cotangent of dx, with dx's strides; null = 0 */
  const void* v_scale; /* of dscale, [affine_slots][c] of type `parameters`; null = 0 */
  const void* v_shift; /* of dshift; null = 0 */
  popnorm_batch batch;
  const void* reserve;
  size_t reserve_bytes;
  void* grad_x;     /* out, with y's strides; required */
  void* grad_dy;    /* out, with dx's strides; or null. May not be v */
  void* grad_scale; /* out [affine_slots][c]; or null */
  void* workspace;
  size_t workspace_bytes;
} popnorm_double_backward_args;

#define POPNORM_DOUBLE_BACKWARD_ARGS_INIT                                                                              \
  {                                                                                                                    \
    sizeof(popnorm_double_backward_args), NULL, NULL, NULL, NULL, NULL, POPNORM_BATCH_INIT, NULL, 0, NULL, NULL, NULL, \
        NULL, 0                                                                                                        \
  }

/* INVALID: as popnorm_backward. UNSUPPORTED: weights; storage of 16 bits; BLEND and RENORM; several affine slots in one group
 * of BATCH; an activation or a residual. */
POPNORM_API popnorm_status popnorm_double_backward(const popnorm_plan* plan, const popnorm_double_backward_args* args,
                                                   void* stream);

/* ------------------------------------------------------------------------------------------------ folding */

/* Inference with constant statistics needs no normalization: a convolution (or linear layer) before it takes it over,
 *   weights[a][c][i] = weights[c][i]*s,  bias[a][c] = (bias[c] - mean[c])*s + shift[a][c],  s = scale[a][c]*invstd[c]
 * computed in double and rounded once. */
typedef struct popnorm_fold_args {
  size_t size;
  int64_t c;            /* output channels, >= 1 */
  int64_t row;          /* weights per output channel, >= 1 */
  int64_t affine_slots; /* sets of scale and shift, >= 1: as many folded sets of weights and bias */
  popnorm_type type;    /* of every array here: f32 (default) or f64 */
  double epsilon;       /* finite, >= 0 */
  const void* weights;  /* [c][row] */
  const void* bias;     /* [c], or null = 0 */
  const void* mean;     /* [c] */
  const void* variance; /* [c], >= 0 */
  const void* scale;    /* [affine_slots][c], or null = 1 */
  const void* shift;    /* [affine_slots][c], or null = 0 */
  void* folded_weights; /* out [affine_slots][c][row]; may be weights if affine_slots is 1 */
  void* folded_bias;    /* out [affine_slots][c]; may be bias if affine_slots is 1 */
} popnorm_fold_args;

#define POPNORM_FOLD_ARGS_INIT \
  { sizeof(popnorm_fold_args), 0, 0, 1, POPNORM_TYPE_DEFAULT, 1e-5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL }

/* INVALID: null or overlapping arrays, sizes < 1 or overflowing, a bad epsilon or type, a negative variance. UNSUPPORTED: a type
 * of 16 bits. */
POPNORM_API popnorm_status popnorm_fold(const popnorm_fold_args* args);

#ifdef __cplusplus
}
#endif

#endif
