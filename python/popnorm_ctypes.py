"""The C API of popnorm.h by ctypes, for programs that have tensors of their own: whatever has a data_ptr()."""

import ctypes

POINTER, SIZE, INT, ENUM, DOUBLE = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int, ctypes.c_double


def struct(name, fields):
    """A structure from "name name ...", type pairs."""
    pairs = [(field, kind) for names, kind in fields for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": pairs})


# popnorm.h's, in its order.
Strides = struct("Strides", [("sample row", INT)])
Map = struct("Map", [("kind", ENUM), ("k", INT)])
Problem = struct("Problem", [("size", SIZE), ("n c s", INT), ("layout storage parameters statistics", ENUM),
                             ("epsilon", DOUBLE), ("x y dy dx", Strides),
                             ("norm_group population_slot affine_slot", Map), ("weights", ENUM),
                             ("residual dresidual", Strides), ("activation", ENUM), ("slope", DOUBLE),
                             ("adds_residual", ctypes.c_int32)])
Batch = struct("Batch", [("norm_group population_slot affine_slot weights device_status", POINTER)])
Moments = struct("Moments", [("weight mean m2", POINTER)])
Source = struct("Source", [("statistics estimator", ENUM), ("mean variance population", POINTER),
                           ("population_bytes", SIZE), ("share renorm_r renorm_d", DOUBLE)])
Update = struct("Update", [("running_mean running_variance population", POINTER), ("population_bytes", SIZE),
                           ("feed", ENUM), ("momentum", DOUBLE)])
PlanInfo = struct("PlanInfo", [("size workspace_bytes workspace_alignment reserve_bytes reserve_alignment", SIZE),
                               ("backend", ENUM), ("isa", ctypes.c_char_p), ("tiles", INT),
                               ("double_backward_workspace_bytes", SIZE),
                               ("groups population_slots affine_slots", INT), ("policy", ctypes.c_char_p)])
Forward = struct("Forward", [("size", SIZE), ("x y scale shift", POINTER), ("batch", Batch), ("source", Source),
                             ("update", Update), ("saved_mean saved_invstd", POINTER), ("moments", Moments),
                             ("reserve", POINTER), ("reserve_bytes", SIZE), ("workspace", POINTER),
                             ("workspace_bytes", SIZE), ("residual", POINTER)])
Backward = struct("Backward", [("size", SIZE), ("x dy", POINTER), ("batch", Batch), ("dx dscale dshift", POINTER),
                               ("accumulate", ctypes.c_int32), ("reserve", POINTER), ("reserve_bytes", SIZE),
                               ("saved_mean saved_invstd scale", POINTER), ("statistics", ENUM), ("workspace", POINTER),
                               ("workspace_bytes", SIZE), ("dresidual", POINTER)])
DoubleBackward = struct("DoubleBackward", [("size", SIZE), ("x dy v v_scale v_shift", POINTER), ("batch", Batch),
                                           ("reserve", POINTER), ("reserve_bytes", SIZE),
                                           ("grad_x grad_dy grad_scale", POINTER), ("workspace", POINTER),
                                           ("workspace_bytes", SIZE)])

NCHW, NHWC = 0, 1
F32, F64, BF16, F16 = 1, 2, 3, 4
BATCH, GIVEN = 0, 1
WHOLE, CONTIGUOUS, PER_SAMPLE = 0, 1, 3
IDENTITY, RELU, LEAKY_RELU = 0, 1, 2


def load(path):
    library = ctypes.CDLL(path)
    library.popnorm_last_error.restype = ctypes.c_char_p
    library.popnorm_plan_destroy.argtypes = [POINTER]
    return library


class Bytes:
    """Memory at a multiple of 64."""

    def __init__(self, size):
        self.memory, self.size = ctypes.create_string_buffer(size + 64), size

    def data_ptr(self):
        address = ctypes.addressof(self.memory)
        return address + -address % 64


class Plan:
    """A plan with the workspace and the reserve of its calls. `problem`: n, c, s, layout and whatever differs from
    POPNORM_PROBLEM_INIT."""

    def __init__(self, library, **problem):
        self.library, self.plan = library, POINTER()
        filled = Problem(size=ctypes.sizeof(Problem), **{"epsilon": 1e-5, **problem})
        self.check(library.popnorm_plan_create(ctypes.byref(filled), None, ctypes.byref(self.plan)))
        info = PlanInfo(size=ctypes.sizeof(PlanInfo))
        self.check(library.popnorm_plan_query(self.plan, ctypes.byref(info)))
        self.info = info
        self.workspace = Bytes(max(info.workspace_bytes, info.double_backward_workspace_bytes))
        self.reserve = Bytes(info.reserve_bytes)

    def __del__(self):
        self.library.popnorm_plan_destroy(self.plan)

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.library.popnorm_last_error().decode())

    def prepared(self, entry, args, **tensors):
        """What calls an entry of the library with these tensors, which it keeps alive."""
        for name, tensor in tensors.items():
            setattr(args, name, tensor.data_ptr())
        args.size = ctypes.sizeof(args)
        for name in ("reserve", "workspace"):
            setattr(args, name, getattr(self, name).data_ptr())
            setattr(args, f"{name}_bytes", getattr(self, name).size)
        args.kept = tensors
        reference = ctypes.byref(args)
        return lambda: self.check(entry(self.plan, reference, None))
