"""What a recipe needs before it is run; see `plan_recipe`."""

from .planning import PartPlan, Plan, plan_recipe


__all__ = ["PartPlan", "Plan", "plan_recipe"]
