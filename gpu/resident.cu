// Kernels of one read: which run, on what.
#include <algorithm>
#include <type_traits>

#include "gpu/call.hpp"
#include "gpu/operations.hpp"
#include "gpu/resident.hpp"

namespace popnorm::cuda {
namespace {

// As with_access, of kernels of one read.
template <class A, class Body>
auto with_kept(const Problem& p, Reach reach, bool flag, const Body& body) {
  return with_access<A>(p, p.form == Form::rows ? Reach::even : reach, [&](auto type, auto access) {
    if constexpr (is_even(access.value) || access.value == Access::columns || std::is_same_v<A, double>) {
      return flag ? body(type, access, std::true_type{}) : body(type, access, std::false_type{});
    } else {
      return decltype(body(type, AccessConstant<Access::even_rows>{}, std::true_type{})){};
    }
  });
}

// Teams of a kernel of one read that the device has room for at once: kernel(type, access, fused) is an instance of it.
template <class Kernel>
int most_teams(const Problem& p, Direction direction, const Policy& policy, const Kernel& kernel) {
  return with_arithmetic_type(p, [&](auto arithmetic) {
    // Which of them a call takes, its pointers decide.
    const auto most = [&](Reach reach) {
      return with_kept<decltype(arithmetic)>(p, reach, p.fused(), [&](auto type, auto access, auto fused) {
        return co_resident(kernel(type, access, fused), team_grid_of(p, direction, policy));
      });
    };
    return std::min(most(Reach::any), most(Reach::even)) / policy.team;
  });
}

}  // namespace

template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentForwardArgs<A>& args, const Policy& policy,
                               void* stream) {
  const Reach reach = reach_of(p, {args.moments.x, args.y, args.fusion.residual});
  return with_kept<A>(p, reach, p.fused(), [&](auto type, auto access, auto fused) {
    return launch("forward", "resident_forward", resident_forward_kernel<decltype(type), access.value, fused.value>,
                  args, team_grid_of(p, Direction::forward, policy), stream);
  });
}
template popnorm_status launch_resident(const Problem&, const ResidentForwardArgs<float>&, const Policy&, void*);
template popnorm_status launch_resident(const Problem&, const ResidentForwardArgs<double>&, const Policy&, void*);

template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentBackwardArgs<A>& args, const Policy& policy,
                               void* stream) {
  const Reach reach = reach_of(p, {args.reduce.x, args.reduce.dy, args.dx, args.dresidual});
  return with_kept<A>(p, reach, p.fused(), [&](auto type, auto access, auto fused) {
    return launch("backward", "resident_backward", resident_backward_kernel<decltype(type), access.value, fused.value>,
                  args, team_grid_of(p, Direction::backward, policy), stream);
  });
}
template popnorm_status launch_resident(const Problem&, const ResidentBackwardArgs<float>&, const Policy&, void*);
template popnorm_status launch_resident(const Problem&, const ResidentBackwardArgs<double>&, const Policy&, void*);

int most_forward_teams(const Problem& p, const Policy& policy) {
  return most_teams(p, Direction::forward, policy, [](auto type, auto access, auto fused) {
    return reinterpret_cast<const void*>(resident_forward_kernel<decltype(type), access.value, fused.value>);
  });
}

int most_backward_teams(const Problem& p, const Policy& policy) {
  return most_teams(p, Direction::backward, policy, [](auto type, auto access, auto fused) {
    return reinterpret_cast<const void*>(resident_backward_kernel<decltype(type), access.value, fused.value>);
  });
}

}  // namespace popnorm::cuda
